from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.transforms import BaseTransform

from pyg_mmrec.data.graph import INTERACTED_BY, INTERACTS, Graph

from .edge_selection import keep_edges
from .normalize import check_interactions, symmetric_normalization
from .seeding import check_seed, make_generator


def degree_sensitive_weight(edge_index: Tensor, num_users: int, num_items: int) -> Tensor:
    r"""The keep probability of each interaction in degree-sensitive pruning, up to a factor.

    .. math::
        p_{ui} \propto \frac{1}{\sqrt{d_u \, d_i}}

    Interactions of popular items with active users are pruned first, as in
    `"Layer-refined Graph Convolutional Networks for Recommendation"
    <https://arxiv.org/abs/2207.11088>`_ and `"A Tale of Two Graphs: Freezing and Denoising Graph
    Structures for Multimodal Recommendation" <https://arxiv.org/abs/2211.06924>`_ (FREEDOM).

    Args:
        edge_index (Tensor): The interactions, users in row 0 and items in row 1.
        num_users (int): The number of users.
        num_items (int): The number of items.

    Shapes:
        - **edge_index:** :math:`(2, E)`
        - **output:** :math:`(E,)`

    Raises:
        ValueError: If :obj:`edge_index` is not of the shape above.
    """
    return symmetric_normalization(edge_index, num_users, num_items)


def degree_sensitive_sample(
    weight: Tensor, keep: int, generator: torch.Generator | None = None
) -> Tensor:
    r"""Draws edges without replacement, each draw with probability proportional to its weight
    among the edges that are left.

    Edge :math:`e` gets the arrival time :math:`t_e = -\log(u_e) / p_e`, :math:`u_e` uniform, and
    the :obj:`keep` first arrivals are drawn: the same distribution as
    :func:`torch.multinomial`, which stops at :math:`2^{24}` edges, in one pass.

    Args:
        weight (Tensor): Weights :math:`p_e` of at least 0, unnormalised; for instance those of
            :func:`degree_sensitive_weight`, or ones for uniform pruning.
        keep (int): The number of edges to draw.
        generator (torch.Generator, optional): The generator to draw from; :obj:`None` is the
            global one. (default: :obj:`None`)

    Shapes:
        - **weight:** :math:`(E,)`
        - **output:** :math:`(\textrm{keep},)`, the edges' positions in increasing order

    Raises:
        ValueError: If :obj:`weight` is not a vector of finite entries of at least 0, or if
            :obj:`keep` is negative or more than there are positive weights.
    """
    if weight.dim() != 1:
        raise ValueError(f"'weight' needs to be a vector (got shape {list(weight.shape)})")
    if not bool((weight.isfinite() & (weight >= 0)).all()):
        raise ValueError("'weight' needs finite entries of at least 0 (got another one)")
    available = int(weight.count_nonzero())
    if isinstance(keep, bool) or not isinstance(keep, int) or not 0 <= keep <= available:
        raise ValueError(
            f"'keep' needs to be an integer from 0 to the number of edges of positive weight, "
            f"{available} (got {keep!r})"
        )
    device = weight.device if generator is None else generator.device
    # float64: in float32, arrival times of millions of edges would tie.
    arrival = torch.empty(weight.size(0), dtype=torch.float64, device=device)
    arrival = arrival.exponential_(generator=generator).to(weight.device) / weight.detach()
    return arrival.topk(keep, largest=False, sorted=False).indices.sort().values


def num_kept_edges(num_edges: int, edge_dropout: float) -> int:
    r"""The number of edges that pruning keeps: :obj:`int(num_edges * (1 - edge_dropout))`.

    Args:
        num_edges (int): The number of edges before.
        edge_dropout (float): The share to prune, in :math:`[0, 1)`.

    Raises:
        ValueError: If :obj:`edge_dropout` is outside of :math:`[0, 1)`, or if of some edges none
            would be kept.

    .. note::
        Computed in floating point on purpose, as in the public MMRec toolbox:
        :obj:`num_kept_edges(100, 0.8)` is 19, since :obj:`100 * (1 - 0.8)` is just below 20.

    Example:
        >>> num_kept_edges(210, 0.5)
        105
    """
    _check_edge_dropout(edge_dropout)
    kept = int(num_edges * (1.0 - edge_dropout))
    if num_edges > 0 and kept == 0:
        raise ValueError(f"'edge_dropout' {edge_dropout} keeps none of {num_edges} interactions")
    return kept


def prune_interactions(graph: Graph, kept: Tensor) -> Graph:
    r"""The graph with some of its training interactions, symmetrically normalised on these.

    Args:
        graph (Graph): The full graph.
        kept (Tensor): Positions of the kept interactions among those from users to items.

    Shapes:
        - **kept:** :math:`(E',)`
    """
    full = graph.adjacency[INTERACTS]
    marked = torch.zeros(full.num_edges, dtype=torch.bool, device=full.col.device)
    marked[kept] = True
    pruned = full.select(marked)
    weight = symmetric_normalization(pruned.edge_index, graph.num_users, graph.num_items)
    weighted = tuple(dict.fromkeys([*graph.weighted, INTERACTS, INTERACTED_BY]))
    return graph.with_interactions(pruned.with_weight(weight)).replace(weighted=weighted)


class DegreeSensitivePruning(BaseTransform):
    r"""Prunes training interactions, those between active users and popular items first.

    :obj:`int(E * (1 - edge_dropout))` of :math:`E` interactions are kept, drawn without
    replacement with probability proportional to :math:`1 / \sqrt{d_u \, d_i}`
    (see :func:`degree_sensitive_weight`, :func:`degree_sensitive_sample`). Edge attributes
    (:obj:`time`, :obj:`rating`) are cut along, :obj:`edge_weight` becomes the symmetric
    normalisation on the kept interactions, and held-out label indices stay as they are. Edges from
    items to users, if the data have some, stay too: make them after pruning.

    Args:
        edge_dropout (float, optional): The share of interactions to prune, in :math:`[0, 1)`.
            (default: :obj:`0.8`)
        seed (int, optional): Makes every call draw the same interactions.
            (default: :obj:`None`)
        generator (torch.Generator, optional): The generator to draw from, instead of a seed;
            each call moves it on. With neither, the global generator is used.
            (default: :obj:`None`)

    Raises:
        ValueError: If :obj:`edge_dropout` is outside of :math:`[0, 1)`, if both :obj:`seed` and
            :obj:`generator` are given, if the data has no interactions, or if none would be kept.
    """

    def __init__(
        self,
        edge_dropout: float = 0.8,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        _check_edge_dropout(edge_dropout)
        check_seed(seed, generator)
        self.edge_dropout = edge_dropout
        self.seed = seed
        self.generator = generator

    def forward(self, data: HeteroData) -> HeteroData:
        """Return the data with fewer training interactions."""
        check_interactions(data)
        store = data["user", "interacts", "item"]
        num_users, num_items = data["user"].num_nodes, data["item"].num_nodes
        edge_index: Tensor = store.edge_index
        keep = num_kept_edges(edge_index.size(1), self.edge_dropout)
        if keep < edge_index.size(1):
            weight = degree_sensitive_weight(edge_index, num_users, num_items)
            generator = make_generator(self.seed, self.generator)
            keep_edges(store, degree_sensitive_sample(weight, keep, generator))
        store.edge_weight = symmetric_normalization(store.edge_index, num_users, num_items)
        return data

    def __repr__(self) -> str:
        seed = "" if self.seed is None else f", seed={self.seed}"
        return f"{type(self).__name__}(edge_dropout={self.edge_dropout}{seed})"


def _check_edge_dropout(edge_dropout: float) -> None:
    if not 0.0 <= edge_dropout < 1.0:
        raise ValueError(
            f"'edge_dropout' needs to be at least 0 and less than 1 (got {edge_dropout})"
        )
