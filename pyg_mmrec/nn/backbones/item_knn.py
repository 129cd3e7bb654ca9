"""Item-based collaborative filtering."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch_geometric.transforms import BaseTransform

from pyg_mmrec.argument_checks import check_positive
from pyg_mmrec.data import Graph
from pyg_mmrec.data.graph import INTERACTED_BY
from pyg_mmrec.nn.backbones.backbone import Backbone
from pyg_mmrec.nn.backbones.stages import Stages, Triplets
from pyg_mmrec.nn.functional import spmm
from pyg_mmrec.transforms import ItemCosineGraph

CO_INTERACTED = ("item", "co_interacted", "item")


class ItemKNN(Backbone):
    r"""Item-based collaborative filtering (`Deshpande & Karypis, 2004
    <https://doi.org/10.1145/963770.963776>`_).

    .. math::
        s_{ui} = \sum_{j \in \mathcal{I}_u \cap \mathcal{N}_k(i)} \cos(i, j)

    over the user's training items :math:`j` among the :math:`k` items most similar to :math:`i`
    by their users. An item without any of them is no candidate, :math:`s_{ui} = -\infty`: ties are
    ranked by id, and ids may tell when an item came. Nothing is trained: a backbone that ranks
    worse is suspect. The scores are no inner product of short vectors.

    Args:
        num_users (int): Number of users.
        num_items (int): Number of items.
        k (int, optional): Number of neighbours of an item. (default: 100)

    Raises:
        ValueError: If a number is not a positive integer.
    """

    has_vectors = False
    sites: ClassVar[dict[str, int]] = {}  # type: ignore[assignment]

    def __init__(self, num_users: int, num_items: int, k: int = 100) -> None:
        super().__init__(num_users, num_items)
        check_positive("k", k)
        self.k = k

    @property
    def transform(self) -> BaseTransform:
        """The graph of similar items."""
        return ItemCosineGraph(self.k)

    def fuse(
        self, modality: dict[str, Tensor], graph: Graph
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Nothing is hidden."""
        return {}, {}

    def encode(
        self,
        hidden: dict[str, Tensor],
        context: dict[str, Any],
        graph: Graph,
        delta: dict[str, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Nothing is encoded: scores are read off the graph."""
        return {}, {}, {}

    def loss(self, stages: Stages, batch: Triplets) -> dict[str, Tensor]:
        """No term: there is nothing to train."""
        return {}

    def vectors(self, stages: Stages) -> tuple[Tensor, Tensor]:
        """Not to be had.

        Raises:
            ValueError: Always.
        """
        raise ValueError("ItemKNN has no user and item vectors; use 'scores'")

    def scores(self, stages: Stages, graph: Graph, users: Tensor) -> Tensor:
        """Adds up the similarities to the users' training items."""
        similar = graph.weighted_adjacency(CO_INTERACTED, "ItemCosineGraph")
        to_user = graph.adjacency[INTERACTED_BY]
        start, degree = to_user.rowptr[users].long(), to_user.rowptr.diff()[users].long()
        row = torch.arange(users.numel(), device=users.device).repeat_interleave(degree)
        first = degree.cumsum(0) - degree
        place = torch.arange(row.numel(), device=row.device) - first[row] + start[row]
        profile = similar.weight.new_zeros(self.num_items, users.numel())
        profile[to_user.col[place].long(), row] = 1.0
        scores = spmm(similar, profile).t()
        return scores.masked_fill(scores == 0, -torch.inf)
