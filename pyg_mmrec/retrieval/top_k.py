"""Exact top-k items of every user."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral

import torch
from torch import Tensor
from torch_geometric.utils import cumsum

# Scores held at a time: on a CPU they stay in cache, a GPU needs more of them to be busy.
CPU_CHUNK_SCORES = 2**20
ACCELERATOR_CHUNK_SCORES = 2**26


class InnerProduct:
    r"""Scores items by the inner product of user and item vectors,
    :math:`s_{ui} = \mathbf{p}_u^{\top} \mathbf{q}_i`.

    Vectors in half precision are scored in :obj:`float32`, so that rounding adds no ties.

    Args:
        user_vectors (torch.Tensor): Vectors of all users, :obj:`[num_users, channels]`.
        item_vectors (torch.Tensor): Vectors of all items, :obj:`[num_items, channels]`.

    Shapes:
        - **input:** user ids :math:`(n)`
        - **output:** scores :math:`(n, |\mathcal{I}|)`

    Raises:
        ValueError: If the two are not floating-point matrices of the same width and type.
    """

    def __init__(self, user_vectors: Tensor, item_vectors: Tensor) -> None:
        for name, vectors in (("user_vectors", user_vectors), ("item_vectors", item_vectors)):
            if vectors.dim() != 2 or not vectors.is_floating_point():
                raise ValueError(
                    f"'{name}' needs to be a floating-point matrix "
                    f"(got {vectors.dtype} of shape {list(vectors.shape)})"
                )
        if user_vectors.size(1) != item_vectors.size(1) or user_vectors.dtype != item_vectors.dtype:
            raise ValueError(
                f"'user_vectors' and 'item_vectors' need the same width and type (got "
                f"{user_vectors.size(1)} of {user_vectors.dtype} and "
                f"{item_vectors.size(1)} of {item_vectors.dtype})"
            )
        dtype = torch.promote_types(user_vectors.dtype, torch.float32)
        self.user_vectors = user_vectors.detach().to(dtype)
        self.item_vectors = item_vectors.detach().to(dtype)

    @property
    def num_items(self) -> int:
        """Number of items that are scored."""
        return self.item_vectors.size(0)

    def __call__(self, users: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the scores of all items for :obj:`users`, written into :obj:`out` if given."""
        return torch.mm(self.user_vectors[users], self.item_vectors.t(), out=out)

    def __repr__(self) -> str:
        num_users, channels = self.user_vectors.shape
        return f"{self.__class__.__name__}({num_users} users, {self.num_items} items, {channels})"


@torch.no_grad()
def top_k(
    score: Callable[[Tensor], Tensor],
    users: Tensor,
    k: int,
    *,
    exclude: Tensor | tuple[Tensor, Tensor] | None = None,
    num_items: int | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Returns the :obj:`k` best-scored items of every user, best first, exactly.

    Equal scores are ordered by lower item id, whatever the device. Users are scored in chunks, so
    memory is :obj:`chunk_size * num_items` scores. (A matrix product may round differently in
    chunks of another size, which can swap items whose scores differ by that rounding only.)

    Args:
        score (callable): Takes user ids :obj:`[n]` and returns floating-point scores
            :obj:`[n, num_items]`; its result is not written to. :class:`InnerProduct` is the
            fast one. An item with score :math:`-\infty` is no candidate.
        users (torch.Tensor): User ids, :obj:`int64 [n]`, in any order.
        k (int): Number of items per user, at least 1.
        exclude (torch.Tensor or tuple, optional): Items that must not be recommended to a user,
            *e.g.*, their training items: (user, item) pairs :obj:`[2, E]` in any order, or, sorted
            once for many calls, :obj:`(rowptr, col)` in CSR form over all users.
            (default: :obj:`None`)
        num_items (int, optional): Number of items that :obj:`score` has to score, by default
            as many as it scores for the first user. (default: :obj:`None`)
        chunk_size (int, optional): Number of users scored at a time. By default as many as keep
            the scores of a chunk in a CPU's cache, or a GPU busy. (default: :obj:`None`)

    Returns:
        Scores :obj:`[n, k]` and item ids :obj:`[n, k]`. Where a user has fewer than :obj:`k`
        candidates, the rest of the row is score :math:`-\infty` and item :obj:`-1`.

    Raises:
        ValueError: If an argument has a wrong shape, type or range, or if a score is NaN.
    """
    if not isinstance(users, Tensor):
        raise ValueError(f"'users' needs to be a tensor of ids (got {type(users).__name__})")
    if isinstance(exclude, Tensor):
        exclude = _by_user(exclude, users)
    _check_arguments(users, k, exclude, chunk_size)
    k = int(k)
    if isinstance(score, InnerProduct) and users.numel() > 0:
        num_users = score.user_vectors.size(0)
        if int(users.max()) >= num_users:
            raise ValueError(
                f"'users' needs ids below {num_users}, the number of user vectors "
                f"(got {int(users.max())})"
            )
    if users.numel() == 0:
        return torch.empty(0, k, device=users.device), users.new_empty(0, k)
    if num_items is None:
        num_items = score(users[:1]).size(-1)
    if exclude is not None and exclude[1].numel() > 0 and int(exclude[1].max()) >= num_items:
        raise ValueError(
            f"'exclude' needs item ids below {num_items}, the number of scored items "
            f"(got {int(exclude[1].max())})"
        )

    buffer: Tensor | None = None
    values, items = [], []
    for chunk in users.split(chunk_size or default_chunk_size(num_items, users.device)):
        out = None if buffer is None else buffer[: chunk.numel()]
        if isinstance(score, InnerProduct) and score.num_items == num_items:
            scores = score(chunk, out=out)
        else:
            scores = score(chunk)
            _check_scores(scores, chunk.numel(), num_items)
            # Excluded items are overwritten, which a caller's own tensor must not show.
            if out is None:
                scores = scores.clone(memory_format=torch.contiguous_format)
            else:
                scores = out.copy_(scores)
        if buffer is None:
            buffer = scores
        if exclude is not None:
            mask_items(scores, chunk, *exclude)
        chunk_values, chunk_items = _top_k_rows(scores, k)
        values.append(chunk_values)
        items.append(chunk_items)
    return _finish(torch.cat(values), torch.cat(items), k)


def _by_user(pairs: Tensor, users: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs in CSR form, with a row for every user up to the last one that is asked for."""
    if pairs.dim() != 2 or pairs.size(0) != 2 or pairs.dtype != torch.int64:
        raise ValueError(
            f"'exclude' needs to be int64 of shape [2, num_pairs] "
            f"(got {pairs.dtype} of shape {list(pairs.shape)})"
        )
    if pairs.numel() > 0 and int(pairs[0].min()) < 0:
        raise ValueError(f"'exclude' needs non-negative user ids (got {int(pairs[0].min())})")
    num_users = 1 + max(int(ids.max()) if ids.numel() > 0 else -1 for ids in (pairs[0], users))
    rowptr = cumsum(torch.bincount(pairs[0], minlength=num_users))
    return rowptr, pairs[1][pairs[0].argsort(stable=True)]


def _check_arguments(
    users: Tensor, k: int, exclude: tuple[Tensor, Tensor] | None, chunk_size: int | None
) -> None:
    for name, value in (("k", k), ("chunk_size", chunk_size)):
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        if value is not None and (not whole or value < 1):
            raise ValueError(f"'{name}' needs to be a positive integer (got {value!r})")
    if users.dim() != 1 or users.dtype != torch.int64:
        raise ValueError(
            f"'users' needs to be a vector of int64 ids "
            f"(got {users.dtype} of shape {list(users.shape)})"
        )
    if users.numel() > 0 and int(users.min()) < 0:
        raise ValueError(f"'users' needs ids of 0 or more (got {int(users.min())})")
    if exclude is None or users.numel() == 0:
        return
    rowptr, col = exclude
    if rowptr.dim() != 1 or rowptr.numel() < 1 or col.dim() != 1 or int(rowptr[-1]) != col.numel():
        raise ValueError(
            f"'exclude' needs to be a pair (rowptr, col) whose last pointer is the number of "
            f"columns (got shapes {list(rowptr.shape)} and {list(col.shape)})"
        )
    if int(users.max()) >= rowptr.numel() - 1:
        raise ValueError(
            f"'users' needs ids from 0 to {rowptr.numel() - 2}, the rows of 'exclude' "
            f"(got {int(users.max())})"
        )
    if col.numel() > 0 and int(col.min()) < 0:
        raise ValueError(f"'exclude' needs non-negative item ids (got {int(col.min())})")


def _check_scores(scores: Tensor, num_users: int, num_items: int) -> None:
    shape = [num_users, num_items]
    if list(scores.shape) != shape or num_items < 1 or not scores.is_floating_point():
        raise ValueError(
            f"'score' needs to return floating-point scores of shape {shape} "
            f"(got {scores.dtype} of shape {list(scores.shape)})"
        )


def default_chunk_size(num_items: int, device: torch.device) -> int:
    """How many users to score at a time."""
    scores = CPU_CHUNK_SCORES if device.type == "cpu" else ACCELERATOR_CHUNK_SCORES
    return max(scores // max(num_items, 1), 16)


def mask_items(scores: Tensor, users: Tensor, rowptr: Tensor, col: Tensor) -> None:
    """Set the excluded items of :obj:`scores`, one row for each of :obj:`users`, to -inf; they are
    given in CSR form over all users.
    """
    begin, count = rowptr[users], rowptr[users + 1] - rowptr[users]
    row = torch.arange(users.numel(), device=users.device).repeat_interleave(count)
    first = count.cumsum(0) - count  # position of a row's first entry among all of them
    item = col[torch.arange(row.numel(), device=users.device) + (begin - first)[row]]
    scores.view(-1).index_fill_(0, row * scores.size(1) + item, -torch.inf)


def _top_k_rows(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The best :obj:`min(k, num_items)` of every row: the exact items, equal ones in any order."""
    # One item more than asked for shows whether the last place is tied.
    values, items = _select(scores, min(k + 1, scores.size(1)))
    if values[:, 0].isnan().any():  # NaN comes first
        raise ValueError("'score' needs to return numbers (got NaN)")
    if values.size(1) <= k:
        return values, items

    tied = (values[:, k - 1] == values[:, k]) & (values[:, k] > -torch.inf)
    values, items = values[:, :k], items[:, :k]
    rows = tied.nonzero().view(-1)
    if rows.numel() > 0:
        items[rows] = _with_lowest_ids(scores[rows], values[rows], items[rows])
    return values, items


def _select(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As :func:`torch.topk` on the rows of a matrix, faster where rows are long."""
    num_rows, num_items = scores.shape
    if num_items <= 16 * k:
        return scores.topk(k)
    # The best k items lie in the k blocks with the best maxima. A block is a strided set of items,
    # which makes its maximum a vectorised reduction over rows of blocks. This length balances the
    # number of blocks and the number of items in the chosen ones.
    length = round(math.sqrt(num_items / k))
    num_blocks = num_items // length
    maxima = scores[:, : length * num_blocks].unflatten(1, (length, num_blocks)).amax(dim=1)
    block = maxima.topk(k, sorted=False).indices
    offset = torch.arange(0, length * num_blocks, num_blocks, device=scores.device)
    rest = torch.arange(length * num_blocks, num_items, device=scores.device)
    in_blocks = (block.unsqueeze(2) + offset).view(num_rows, -1)  # [rows, k * length]
    candidates = torch.cat([in_blocks, rest.expand(num_rows, -1)], dim=1)
    values, position = scores.gather(1, candidates).topk(k)
    return values, candidates.gather(1, position)


def _with_lowest_ids(scores: Tensor, values: Tensor, items: Tensor) -> Tensor:
    """The best items of every row, where those tied for the last place are the lowest ids."""
    num_items, k = scores.size(1), items.size(1)
    last = values[:, -1:]
    # Floats are selected fastest, and hold whole numbers up to 2^24 exactly.
    dtype = torch.float32 if num_items <= 2**24 else torch.float64
    preference = torch.arange(num_items, 0, -1, device=scores.device, dtype=dtype)
    lowest = _select(preference * (scores == last), k)[1]
    num_better = (values > last).sum(dim=1, keepdim=True)
    column = torch.arange(k, device=scores.device) - num_better
    return torch.where(column < 0, items, lowest.gather(1, column.clamp(min=0)))


def _finish(values: Tensor, items: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Order equal scores by item id, and pad rows to :obj:`k`."""
    candidate = values > -torch.inf
    tied = (values[:, 1:] == values[:, :-1]) & candidate[:, 1:]
    rows = tied.any(dim=1).nonzero().view(-1)
    if rows.numel() > 0:
        by_id, order = items[rows].sort(dim=1)
        best = values[rows].gather(1, order).sort(dim=1, descending=True, stable=True)
        values[rows], items[rows] = best.values, by_id.gather(1, best.indices)
    items.masked_fill_(~candidate, -1)
    missing = k - values.size(1)
    if missing > 0:
        values = torch.nn.functional.pad(values, (0, missing), value=-torch.inf)
        items = torch.nn.functional.pad(items, (0, missing), value=-1)
    return values, items
