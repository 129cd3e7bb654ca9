"""Ranking metrics over all items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, overload

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.metrics import (
    LinkPredHitRatio,
    LinkPredMAP,
    LinkPredNDCG,
    LinkPredPrecision,
    LinkPredRecall,
)
from torch_geometric.metrics.link_pred import LinkPredMetricData
from torch_geometric.utils import cumsum

from pyg_mmrec.retrieval import InnerProduct, top_k
from pyg_mmrec.retrieval.top_k import default_chunk_size, mask_items

#: Lengths of the lists that are measured.
KS = (5, 10, 20, 50)
#: Metrics of a user's list.
FORMULAS = {
    "recall": LinkPredRecall,
    "ndcg": LinkPredNDCG,
    "precision": LinkPredPrecision,
    "map": LinkPredMAP,
    "hit_ratio": LinkPredHitRatio,
}


# Of a user, on average: the two ways to look for them take about as long at six.
_FEW_HELD_OUT = 4
# The most popular items, as shares of all, that tell for most users that nothing is to be found.
_POPULAR = (1 / 64, 1 / 8)
# More than rounding changes an inner product, also in bfloat16, as a share of the norms' product;
# no norm counts as less than this, as squares of smaller numbers underflow.
_ROUNDING, _SMALLEST_NORM = 0.01, 1e-18
# Held-out pairs whose vectors are gathered at a time, to bound the memory.
_PAIRS_AT_A_TIME = 2**14


class FullRanking:
    r"""Ranks all items for every user with held-out items, and measures where those items are.

    With :math:`\mathrm{rel}_r` telling whether the item at rank :math:`r` is held out for the
    user, :math:`n` the number of the user's held-out items and
    :math:`h_r = \sum_{s \le r} \mathrm{rel}_s`

    .. math::
        \mathrm{recall} = \frac{h_k}{n}, \quad
        \mathrm{precision} = \frac{h_k}{k}, \quad
        \mathrm{hit\_ratio} = [h_k > 0], \quad
        \mathrm{map} = \frac{\sum_{r \le k} \mathrm{rel}_r h_r / r}{\min(n, k)}, \quad
        \mathrm{ndcg} = \frac{\sum_{r \le k} \mathrm{rel}_r / \log_2(r + 1)}
        {\sum_{r \le \min(n, k)} 1 / \log_2(r + 1)},

    averaged over the users with at least one held-out item, as in
    :mod:`torch_geometric.metrics`. In addition, :obj:`coverage` is the share of all items that is
    shown to any of these users (if asked for), and :obj:`cold_item_recall` is the recall of
    held-out items without a training interaction, averaged over the users who have such items
    (absent if nobody has).

    Candidates are all items except the user's training items. Everything that depends on the
    data only is prepared once, so that a call is scoring and ranking.

    .. code-block:: python

        evaluator = FullRanking.from_hetero(data, split="val")
        metrics = evaluator(InnerProduct(user_vectors, item_vectors))
        metrics["recall@20"]

    Args:
        edge_label_index (torch.Tensor): Held-out (user, item) pairs, :obj:`int64 [2, n]`, in any
            order.
        train_edge_index (torch.Tensor): Training (user, item) pairs, :obj:`int64 [2, E]`, in any
            order.
        num_users (int): Number of users.
        num_items (int): Number of items.
        ks (sequence of int, optional): List lengths to measure at.
            (default: :obj:`(5, 10, 20, 50)`)
        also_exclude (torch.Tensor, optional): More (user, item) pairs that are no candidates,
            *e.g.*, validation pairs during a test. (default: :obj:`None`)
        chunk_size (int, optional): Number of users ranked at a time, see
            :meth:`~pyg_mmrec.retrieval.top_k`. (default: :obj:`None`)
        coverage (bool, optional): Whether to measure coverage, for which every user's list is
            made. Without it, an :class:`~pyg_mmrec.retrieval.InnerProduct` is mostly evaluated
            several times as fast, with the same results: few users have a held-out item in their
            list, and the most popular items alone can show who has none. (default: :obj:`True`)

    Raises:
        ValueError: If there are no held-out pairs, a pair is out of range, is held out twice or
            is held out and excluded, or if :obj:`ks` are not different positive integers.
    """

    def __init__(
        self,
        edge_label_index: Tensor,
        train_edge_index: Tensor,
        num_users: int,
        num_items: int,
        ks: Sequence[int] = KS,
        also_exclude: Tensor | None = None,
        chunk_size: int | None = None,
        coverage: bool = True,
    ) -> None:
        if len(ks) == 0 or len(set(ks)) < len(ks) or any(type(k) is not int or k < 1 for k in ks):
            raise ValueError(f"'ks' needs to hold different positive integers (got {list(ks)})")
        pairs = {"edge_label_index": edge_label_index, "train_edge_index": train_edge_index}
        if also_exclude is not None:
            pairs["also_exclude"] = also_exclude
        for name, edge_index in pairs.items():
            _check_pairs(name, edge_index, num_users, num_items)
        if edge_label_index.size(1) == 0:
            raise ValueError("'edge_label_index' needs at least one held-out pair (got none)")

        self.num_users, self.num_items = num_users, num_items
        self.ks = tuple(ks)
        self.chunk_size = chunk_size
        self.coverage = coverage

        # A pair as one number: user * num_items + item.
        label_key = (edge_label_index[0] * num_items + edge_label_index[1]).sort().values
        twice = label_key[1:][label_key[1:] == label_key[:-1]]
        if twice.numel() > 0:
            raise ValueError(
                f"'edge_label_index' needs different pairs (user {int(twice[0]) // num_items} and "
                f"item {int(twice[0]) % num_items} occur twice)"
            )
        excluded = train_edge_index
        if also_exclude is not None:
            excluded = torch.cat([train_edge_index, also_exclude], dim=1)
        excluded_key = (excluded[0] * num_items + excluded[1]).unique()
        both = label_key[torch.isin(label_key, excluded_key)]
        if both.numel() > 0:
            raise ValueError(
                f"a held-out item needs to be a candidate (item {int(both[0]) % num_items} of user "
                f"{int(both[0]) // num_items} is also in 'train_edge_index' or 'also_exclude')"
            )

        label_user, label_item = label_key // num_items, label_key % num_items
        excluded_count = torch.bincount(excluded_key // num_items, minlength=num_users)
        #: Ids of the users with held-out items, ascending, the rows of per-user results.
        self.users, count = label_user.unique_consecutive(return_counts=True)
        self._exclude = (cumsum(excluded_count), excluded_key % num_items)
        row = torch.arange(self.users.numel(), device=label_user.device).repeat_interleave(count)
        self._label_index = torch.stack([row, label_item])  # a user is its position in `users`

        popularity = torch.bincount(train_edge_index[1], minlength=num_items)
        self._popular = [] if coverage else self._parts(popularity, excluded_key)

        is_cold = torch.ones(num_items, dtype=torch.bool, device=label_user.device)
        is_cold[train_edge_index[1]] = False
        cold = is_cold[label_item]
        # Positions in `users` of those who have cold items, and the items' pairs among them.
        self._cold_rows, cold_row = row[cold].unique_consecutive(return_inverse=True)
        self._cold_label_index = torch.stack([cold_row, label_item[cold]])

        device = label_user.device
        self._formulas = {
            f"{name}@{k}": formula(k).to(device) for name, formula in FORMULAS.items() for k in ks
        }

    @classmethod
    def from_hetero(
        cls,
        data: HeteroData,
        split: Literal["val", "test"] = "val",
        ks: Sequence[int] = KS,
        mask_validation: bool = False,
        chunk_size: int | None = None,
        coverage: bool = True,
    ) -> FullRanking:
        r"""Makes the evaluator of one split of a data set.

        Args:
            data (torch_geometric.data.HeteroData): Has :obj:`num_nodes` of :obj:`"user"` and
                :obj:`"item"`, and on :obj:`("user", "interacts", "item")` training pairs
                :obj:`edge_index` and held-out pairs :obj:`val_label_index` and
                :obj:`test_label_index`.
            split (str, optional): :obj:`"val"` or :obj:`"test"`. (default: :obj:`"val"`)
            ks (sequence of int, optional): List lengths. (default: :obj:`(5, 10, 20, 50)`)
            mask_validation (bool, optional): Whether validation items are no candidates in the
                test split. Published tables keep them. (default: :obj:`False`)
            chunk_size (int, optional): Number of users ranked at a time. (default: :obj:`None`)
            coverage (bool, optional): Whether to measure coverage. (default: :obj:`True`)

        Raises:
            ValueError: If :obj:`split` is another word, or :obj:`data` lacks its pairs.
        """
        if split not in ("val", "test"):
            raise ValueError(f"'split' needs to be 'val' or 'test' (got '{split}')")
        if mask_validation and split != "test":
            raise ValueError(f"'mask_validation' needs split 'test' (got '{split}')")
        interactions = data["user", "interacts", "item"]
        needed = ["edge_index", f"{split}_label_index"]
        for name in [*needed, "val_label_index"] if mask_validation else needed:
            if name not in interactions:
                raise ValueError(f"the data needs '{name}' on its ('user', 'interacts', 'item')")
            _check_pairs(name, interactions[name], data["user"].num_nodes, data["item"].num_nodes)
        return cls(
            interactions[f"{split}_label_index"],
            interactions.edge_index,
            num_users=data["user"].num_nodes,
            num_items=data["item"].num_nodes,
            ks=ks,
            also_exclude=interactions.val_label_index if mask_validation else None,
            chunk_size=chunk_size,
            coverage=coverage,
        )

    @overload
    def __call__(
        self, score: Callable[[Tensor], Tensor], per_user: Literal[False] = False
    ) -> dict[str, float]: ...

    @overload
    def __call__(
        self, score: Callable[[Tensor], Tensor], per_user: Literal[True]
    ) -> tuple[dict[str, float], dict[str, Tensor]]: ...

    def __call__(
        self, score: Callable[[Tensor], Tensor], per_user: bool = False
    ) -> dict[str, float] | tuple[dict[str, float], dict[str, Tensor]]:
        r"""Ranks with :obj:`score` and returns the metrics, named as in :obj:`"recall@20"`.

        Args:
            score (callable): Takes user ids :obj:`[n]` and returns scores :obj:`[n, num_items]`,
                see :meth:`~pyg_mmrec.retrieval.top_k`.
            per_user (bool, optional): Whether to return the metrics' values of every user too,
                :obj:`float32 [len(self.users)]` in the order of :obj:`self.users`, for recall,
                ndcg, precision, map and hit_ratio. (default: :obj:`False`)

        Raises:
            ValueError: If the scores have another shape, are no floats or are NaN.
        """
        rows = self._rows_to_rank(score)
        _, ranked = top_k(
            score,
            self.users[rows],
            max(self.ks),
            num_items=self.num_items,
            exclude=self._exclude,
            chunk_size=self.chunk_size,
        )
        items = ranked.new_full((self.users.numel(), ranked.size(1)), -1)
        items.index_copy_(0, rows, ranked)
        return self.measure(items, per_user=True) if per_user else self.measure(items)

    @overload
    def measure(self, items: Tensor, per_user: Literal[False] = False) -> dict[str, float]: ...

    @overload
    def measure(
        self, items: Tensor, per_user: Literal[True]
    ) -> tuple[dict[str, float], dict[str, Tensor]]: ...

    def measure(
        self, items: Tensor, per_user: bool = False
    ) -> dict[str, float] | tuple[dict[str, float], dict[str, Tensor]]:
        r"""Measures lists that were ranked elsewhere, *e.g.*, by a retrieval index.

        Args:
            items (torch.Tensor): Item ids, best first and different within a row, :obj:`int64`
                ``[len(self.users), max(ks)]`` in the order of :obj:`self.users`; :obj:`-1` where
                a list is shorter.
            per_user (bool, optional): As in a call. (default: :obj:`False`)

        Raises:
            ValueError: If :obj:`items` has another shape or holds other ids.
        """
        known = self._known(items)
        rows, ranked = _lists_with_hits(known, self._label_index)
        # PyG's metrics hand out means only; `_compute` is where each defines its value of a user.
        nothing = torch.zeros(len(known), device=known.device)
        users = {
            name: nothing.index_copy(0, rows, formula._compute(ranked))
            for name, formula in self._formulas.items()
        }
        means = {name: value.mean(dtype=torch.float64) for name, value in users.items()}
        if self.coverage:
            for k, value in zip(self.ks, self._coverage(known), strict=True):
                means[f"coverage@{k}"] = value
        if self._cold_rows.numel() > 0:
            _, ranked = _lists_with_hits(known[self._cold_rows], self._cold_label_index)
            for k in self.ks:
                value = self._formulas[f"recall@{k}"]._compute(ranked)
                means[f"cold_item_recall@{k}"] = (
                    value.sum(dtype=torch.float64) / self._cold_rows.numel()
                )

        # One transfer to the host.
        metrics = dict(zip(means, torch.stack(list(means.values())).tolist(), strict=True))
        return (metrics, users) if per_user else metrics

    def to(self, device: torch.device | str) -> FullRanking:
        r"""Moves the prepared tensors, in place, to where scores will be made."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))
        rowptr, col = self._exclude
        self._exclude = (rowptr.to(device), col.to(device))
        self._popular = [(i.to(device), r.to(device), c.to(device)) for i, r, c in self._popular]
        for formula in self._formulas.values():
            formula.to(device)
        return self

    def _parts(
        self, popularity: Tensor, excluded_key: Tensor
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """The most popular items, in parts, and the places in each that are no candidates of a
        user, in CSR form.
        """
        by_popularity = popularity.argsort(descending=True, stable=True)
        rank = torch.empty_like(by_popularity)
        rank[by_popularity] = torch.arange(self.num_items, device=rank.device)
        user, rank = excluded_key // self.num_items, rank[excluded_key % self.num_items]
        parts, start = [], 0
        for end in (int(share * self.num_items) for share in _POPULAR):
            inside = (rank >= start) & (rank < end)
            rowptr = cumsum(torch.bincount(user[inside], minlength=self.num_users))
            parts.append((by_popularity[start:end], rowptr, rank[inside] - start))
            start = end
        return parts

    def _rows_to_rank(self, score: Callable[[Tensor], Tensor]) -> Tensor:
        """Positions in :attr:`users` of those whose lists may hold what is held out. For everyone
        else, enough of the most popular candidates alone are better than any of it.
        """
        rows = torch.arange(self.users.numel(), device=self.users.device)
        # Only what is known to be inner products, of all users and items, can be told in advance.
        if self.coverage or type(score) is not InnerProduct:
            return rows
        user, item = score.user_vectors, score.item_vectors
        if (user.size(0), item.size(0)) != (self.num_users, self.num_items):
            return rows
        bound = user.new_full((rows.numel(),), -torch.inf)
        for row, label_item in self._label_index.split(_PAIRS_AT_A_TIME, dim=1):
            value = (user[self.users[row]] * item[label_item]).sum(dim=1)
            bound.scatter_reduce_(0, row, value, "amax")
        # Where a product may overflow, so does a norm, and nothing is better than that.
        norm, item_norm = (
            torch.linalg.vector_norm(vectors, dim=1).clamp(min=_SMALLEST_NORM)
            for vectors in (user[self.users], item)
        )
        bound += _ROUNDING * item_norm.max() * norm
        num_better = torch.zeros_like(rows)
        for items, rowptr, col in self._popular:
            part = InnerProduct(user, item[items])
            chunk_size = self.chunk_size or default_chunk_size(items.numel(), rows.device)
            for chunk in rows.split(chunk_size):
                users = self.users[chunk]
                scores = part(users)
                mask_items(scores, users, rowptr, col)
                num_better[chunk] += (scores > bound[chunk].unsqueeze(1)).sum(dim=1)
            rows = rows[num_better[rows] < max(self.ks)]
        return rows

    def _coverage(self, known: Tensor) -> Tensor:
        # The shortest list in which some user is shown the item; absent items have a last place.
        rank = torch.arange(1, known.size(1) + 1, device=known.device).expand_as(known).reshape(-1)
        shown = rank.new_full((self.num_items + 1,), known.size(1) + 1)
        shown = shown.scatter_reduce(0, known.view(-1), rank, "amin")[: self.num_items]
        return torch.stack([(shown <= k).double().mean() for k in self.ks])

    def _known(self, items: Tensor) -> Tensor:
        # Absent items become one that exists nowhere: -1 would be read as another row's item.
        shape = [self.users.numel(), max(self.ks)]
        if list(items.shape) != shape or items.dtype != torch.int64:
            raise ValueError(
                f"'items' needs to be int64 of shape {shape}, one row for each of 'users' "
                f"(got {items.dtype} of shape {list(items.shape)})"
            )
        low, high = items.aminmax()
        if int(low) < -1 or int(high) >= self.num_items:
            raise ValueError(
                f"'items' needs ids from -1 to {self.num_items - 1} (got {int(low)} to {int(high)})"
            )
        return items if int(low) >= 0 else torch.where(items < 0, self.num_items, items)

    def __repr__(self) -> str:
        return (
            f"{self.__class__.__name__}({self.users.numel()} of {self.num_users} users, "
            f"{self._label_index.size(1)} held-out pairs, {self.num_items} items, ks={self.ks})"
        )


def _lists_with_hits(items: Tensor, label_index: Tensor) -> tuple[Tensor, LinkPredMetricData]:
    """The rows of ``items`` that list any of their held-out items, which ``label_index`` holds by
    row, and what PyG's metrics read of them; in all others, every metric is zero.

    Where few items are held out, looks for each in its user's list, where PyG looks for every
    listed item among all that are held out. At the size of Amazon Baby, measuring is 2.5 times
    as fast so as by PyG's metrics on all lists.
    """
    row, item = label_index
    if row.numel() > _FEW_HELD_OUT * len(items):
        relevant = LinkPredMetricData(items, label_index).pred_rel_mat
        rows = relevant.sum(1).nonzero()[:, 0]  # twice as fast as any(1)
        relevant = relevant[rows]
    else:
        matches = items.index_select(0, row) == item.unsqueeze(1)
        hits = matches.sum(1).nonzero()[:, 0]
        rows, inverse = row[hits].unique_consecutive(return_inverse=True)
        hit, rank = matches[hits].nonzero(as_tuple=True)
        relevant = matches.new_zeros(rows.numel(), items.size(1))
        relevant[inverse[hit], rank] = True
    lists = LinkPredMetricData(items[rows], label_index)
    lists._pred_rel_mat = relevant
    lists._label_count = torch.bincount(row, minlength=len(items))[rows]
    return rows, lists


def _check_pairs(name: str, edge_index: Tensor, num_users: int, num_items: int) -> None:
    if edge_index.dim() != 2 or edge_index.size(0) != 2 or edge_index.dtype != torch.int64:
        raise ValueError(
            f"'{name}' needs to be int64 of shape [2, num_pairs] "
            f"(got {edge_index.dtype} of shape {list(edge_index.shape)})"
        )
    if edge_index.size(1) == 0:
        return
    for row, kind, size in ((0, "user", num_users), (1, "item", num_items)):
        low, high = edge_index[row].aminmax()
        if int(low) < 0 or int(high) >= size:
            raise ValueError(
                f"'{name}' needs {kind} ids from 0 to {size - 1} in row {row} "
                f"(got {int(low)} to {int(high)})"
            )
