"""The popularity ranking."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from pyg_mmrec.data import Graph
from pyg_mmrec.data.graph import INTERACTS
from pyg_mmrec.nn.backbones.backbone import Backbone
from pyg_mmrec.nn.backbones.stages import Stages, Triplets


class MostPop(Backbone):
    r"""Ranks items by their number of training interactions, the same for every user.

    Nothing is trained: a backbone that ranks worse is suspect.

    Args:
        num_users (int): Number of users.
        num_items (int): Number of items.
    """

    sites: ClassVar[dict[str, int]] = {}  # type: ignore[assignment]

    def fuse(
        self, modality: dict[str, Tensor], graph: Graph
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Counts the interactions of every item."""
        to_item = graph.adjacency[INTERACTS]
        popularity = to_item.rowptr.diff().to(to_item.weight.dtype)[:, None]
        return {}, {"user": popularity.new_ones(self.num_users, 1), "item": popularity}

    def encode(
        self,
        hidden: dict[str, Tensor],
        context: dict[str, Any],
        graph: Graph,
        delta: dict[str, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Hands the counts on."""
        return {}, context, {}

    def loss(self, stages: Stages, batch: Triplets) -> dict[str, Tensor]:
        """No term: there is nothing to train."""
        return {}
