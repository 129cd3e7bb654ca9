from __future__ import annotations

import torch
from torch_geometric.data import HeteroData
from torch_geometric.transforms import BaseTransform
from torch_geometric.utils import coalesce

from pyg_mmrec.argument_checks import check_positive

from .normalize import check_interactions

_CHUNK_NUMBERS = 2**24  # co-occurrences held at a time, 64 MiB


class ItemCosineGraph(BaseTransform):
    r"""Links every item with the items most similar by their users.

    .. math::
        s_{ij} = \frac{|\mathcal{U}_i \cap \mathcal{U}_j|}
        {\sqrt{|\mathcal{U}_i| \, |\mathcal{U}_j|}}

    with :math:`\mathcal{U}_i` the users who interacted with item :math:`i` in training
    (`"Item-based Top-N Recommendation Algorithms" <https://doi.org/10.1145/963770.963776>`_,
    Deshpande & Karypis, 2004). Writes :obj:`('item', 'co_interacted', 'item')` with
    :obj:`edge_index` from neighbour to item and the cosine as :obj:`edge_weight`; an item is not
    its own neighbour, and pairs without a common user are left out.

    Args:
        k (int, optional): The number of neighbours of an item. (default: :obj:`100`)

    Raises:
        ValueError: If :obj:`k` is not a positive integer, or the data has no interactions.
    """

    def __init__(self, k: int = 100) -> None:
        check_positive("k", k)
        self.k = k

    def forward(self, data: HeteroData) -> HeteroData:
        """Build the graph from the training interactions."""
        check_interactions(data)
        user, item = coalesce(data["user", "interacts", "item"].edge_index)
        num_users, num_items = data["user"].num_nodes, data["item"].num_nodes
        users_of_item = torch.sparse_coo_tensor(
            torch.stack([item, user]), torch.ones(item.numel(), device=item.device),
            (num_items, num_users), check_invariants=True,
        ).to_sparse_csr()  # fmt: skip
        norm = torch.bincount(item, minlength=num_items).clamp(min=1).to(torch.float32).sqrt()
        order = item.argsort(stable=True)
        rowptr = torch.searchsorted(item[order], torch.arange(num_items + 1, device=item.device))

        edges, weights = [], []
        step = max(_CHUNK_NUMBERS // max(num_users, num_items), 1)
        for first in range(0, num_items, step):
            last = min(first + step, num_items)
            span = order[int(rowptr[first]) : int(rowptr[last])]
            columns = torch.zeros(num_users, last - first, device=item.device)
            columns[user[span], item[span] - first] = 1.0
            cosine = users_of_item @ columns / norm[:, None] / norm[None, first:last]
            place = torch.arange(last - first, device=item.device)
            cosine[place + first, place] = 0.0
            value, neighbour = cosine.topk(min(self.k, num_items), dim=0)
            target = (place + first).expand_as(neighbour)
            found = value.t() > 0  # by target, then by decreasing similarity
            edges.append(torch.stack([neighbour.t()[found], target.t()[found]]))
            weights.append(value.t()[found])
        store = data["item", "co_interacted", "item"]
        store.edge_index = torch.cat(edges, dim=1)
        store.edge_weight = torch.cat(weights)
        return data

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}(k={self.k})"
