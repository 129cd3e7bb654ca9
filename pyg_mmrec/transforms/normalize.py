from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.transforms import BaseTransform

_ISOLATED_DEGREE = 1e-7


def symmetric_normalization(
    edge_index: Tensor,
    num_users: int,
    num_items: int,
    edge_weight: Tensor | None = None,
) -> Tensor:
    r"""Symmetric normalisation of a user-item graph, as LightGCN and most backbones use it.

    .. math::
        \hat{a}_{ui} = \frac{a_{ui}}{\sqrt{d_u \, d_i}}, \qquad
        d_u = \sum_j a_{uj}, \quad d_i = \sum_v a_{vi}

    These are the entries of :math:`\mathbf{D}^{-1/2} \mathbf{A} \mathbf{D}^{-1/2}` over users and
    items, the same for both directions of an edge.

    Args:
        edge_index (Tensor): The interactions, users in row 0 and items in row 1.
        num_users (int): The number of users.
        num_items (int): The number of items.
        edge_weight (Tensor, optional): Weights :math:`a_{ui}` of at least 0; the result is
            differentiable in them. :obj:`None` stands for ones. (default: :obj:`None`)

    Shapes:
        - **edge_index:** :math:`(2, E)`
        - **edge_weight:** :math:`(E,)`
        - **output:** :math:`(E,)`

    Raises:
        ValueError: If a shape is not as above.

    .. note::
        A node whose degree is not positive counts with degree :math:`10^{-7}`: nothing becomes
        infinite.
    """
    weight = _weight_or_ones(edge_index, edge_weight)
    user_degree = _positive(_sum_at(edge_index[0], weight, num_users))
    item_degree = _positive(_sum_at(edge_index[1], weight, num_items))
    return weight * user_degree.rsqrt()[edge_index[0]] * item_degree.rsqrt()[edge_index[1]]


def row_normalization(
    edge_index: Tensor, num_users: int, num_items: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Row normalisation with self-loops of a user-item graph, as LATTICE uses it.

    .. math::
        \mathbf{D}^{-1} (\mathbf{A} + \mathbf{I}), \qquad d_v = 1 + |\mathcal{N}(v)|

    so every entry in the row of node :math:`v`, its self-loop included, is :math:`1 / d_v`.

    Args:
        edge_index (Tensor): The interactions, users in row 0 and items in row 1.
        num_users (int): The number of users.
        num_items (int): The number of items.

    Shapes:
        - **edge_index:** :math:`(2, E)`
        - **output:** :obj:`(to_item, to_user, self_user, self_item)`: the weights of messages
          from user to item :math:`(E,)` and from item to user :math:`(E,)`, and those of the
          self-loops of users :math:`(N_u,)` and of items :math:`(N_i,)`

    Raises:
        ValueError: If :obj:`edge_index` is not of the shape above.
    """
    ones = _weight_or_ones(edge_index, None)
    self_user = 1.0 / (1.0 + _sum_at(edge_index[0], ones, num_users))
    self_item = 1.0 / (1.0 + _sum_at(edge_index[1], ones, num_items))
    return self_item[edge_index[1]], self_user[edge_index[0]], self_user, self_item


def normalize_item_graph(edge_index: Tensor, edge_weight: Tensor | None, num_nodes: int) -> Tensor:
    r"""Normalises a directed item-item graph by the row sums of both end points.

    .. math::
        \hat{s}_{ij} = r_i^{-1/2} \, s_{ij} \, r_j^{-1/2}, \qquad r_i = \sum_j s_{ij}

    where row :math:`i` is the target of an edge (:obj:`edge_index[1]`) and :math:`j` its source,
    a neighbour of :math:`i`. Entries with :math:`r_i \le 0` or :math:`r_j \le 0` are 0. The
    degree of :math:`j` is the sum of its own row, not of its column.

    Args:
        edge_index (Tensor): The edges, sources (neighbours) in row 0, targets (items) in row 1.
        edge_weight (Tensor, optional): Similarities :math:`s_{ij}`; the result is differentiable
            in them. :obj:`None` stands for ones.
        num_nodes (int): The number of items.

    Shapes:
        - **edge_index:** :math:`(2, E)`
        - **edge_weight:** :math:`(E,)`
        - **output:** :math:`(E,)`

    Raises:
        ValueError: If a shape is not as above.
    """
    weight = _weight_or_ones(edge_index, edge_weight)
    row_sum = _sum_at(edge_index[1], weight, num_nodes)
    positive = row_sum > 0
    # The inner where keeps the gradient of an unused power finite.
    scale = torch.where(positive, row_sum, torch.ones_like(row_sum)).rsqrt()
    scale = torch.where(positive, scale, torch.zeros_like(scale))
    return scale[edge_index[1]] * weight * scale[edge_index[0]]


class NormalizeInteractions(BaseTransform):
    r"""Writes the normalised weight of every training interaction.

    .. math::
        w_{ui} = \frac{1}{\sqrt{d_u \, d_i}}

    with training degrees :math:`d`, as :obj:`edge_weight` of
    :obj:`("user", "interacts", "item")` (see :func:`symmetric_normalization`).

    Raises:
        ValueError: If the data has no interactions.
    """

    def forward(self, data: HeteroData) -> HeteroData:
        """Return the data with normalised interaction weights."""
        check_interactions(data)
        store = data["user", "interacts", "item"]
        store.edge_weight = symmetric_normalization(
            store.edge_index, data["user"].num_nodes, data["item"].num_nodes
        )
        return data

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def check_interactions(data: HeteroData) -> None:
    r"""Checks that the data holds training interactions.

    Args:
        data (HeteroData): The user/item/modality graph.

    Raises:
        ValueError: If the edge type is missing or has no :obj:`edge_index`.
    """
    edge_type = ("user", "interacts", "item")
    if edge_type not in data.edge_types or "edge_index" not in data[edge_type]:
        raise ValueError(
            f"the data needs 'edge_index' of the edge type {edge_type} "
            f"(its edge types: {data.edge_types})"
        )


def _weight_or_ones(edge_index: Tensor, edge_weight: Tensor | None) -> Tensor:
    if edge_index.dim() != 2 or edge_index.size(0) != 2:
        raise ValueError(
            f"'edge_index' needs to be of shape [2, num_edges] (got {list(edge_index.shape)})"
        )
    if edge_weight is None:
        return torch.ones(edge_index.size(1), device=edge_index.device)
    if edge_weight.dim() != 1 or edge_weight.size(0) != edge_index.size(1):
        raise ValueError(
            f"'edge_weight' needs one entry for each of {edge_index.size(1)} edges "
            f"(got shape {list(edge_weight.shape)})"
        )
    return edge_weight


def _sum_at(index: Tensor, weight: Tensor, size: int) -> Tensor:
    return weight.new_zeros(size).index_add(0, index, weight)


def _positive(degree: Tensor) -> Tensor:
    return torch.where(degree > 0, degree, torch.full_like(degree, _ISOLATED_DEGREE))
