"""LayerGCN."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyg_mmrec.argument_checks import check_positive, check_rate
from pyg_mmrec.data import Graph
from pyg_mmrec.data.graph import INTERACTED_BY, INTERACTS
from pyg_mmrec.nn.backbones.lightgcn import LightGCN
from pyg_mmrec.nn.backbones.stages import Stages, Triplets, add_delta
from pyg_mmrec.nn.conv import LayerRefinementConv
from pyg_mmrec.nn.losses import l2_loss, triplet_scores
from pyg_mmrec.transforms import degree_sensitive_sample, num_kept_edges, prune_interactions


class LayerGCN(LightGCN):
    r"""LayerGCN (`"Layer-refined Graph Convolutional Networks for Recommendation"
    <https://arxiv.org/abs/2207.11088>`_, ICDE 2023), on IDs alone.

    .. math::
        \mathbf{E}^{(l+1)} = \cos(\hat{\mathbf{A}} \mathbf{E}^{(l)}, \mathbf{E}^{(0)}) \odot
        \hat{\mathbf{A}} \mathbf{E}^{(l)}, \qquad
        \mathbf{E} = \sum_{l=1}^{L} \mathbf{E}^{(l)}, \qquad
        \mathcal{L} = \sum_{(u,i,j)} -\log \sigma(s_{ui} - s_{uj}) +
        \lambda \, \mathrm{L2Loss}(P_u, Q_i, Q_j)

    row by row, :math:`\mathbf{E}^{(0)} = [\mathbf{P}; \mathbf{Q}]`. Every training epoch keeps
    :math:`1 - \rho` of the interactions, drawn without replacement, renormalised: the first with
    probability proportional to :math:`1 / \sqrt{d_u d_i}`, the next uniformly, and so on in turns.
    Ranking reads the full graph. The hidden sites ``user/embedding`` and ``item/embedding`` are
    the layer-0 embeddings.

    Args:
        num_users (int): Number of users.
        num_items (int): Number of items.
        embedding_dim (int, optional): Size of the embeddings. (default: 64)
        num_layers (int, optional): Number of propagation layers :math:`L`, 1 or more.
            (default: 4)
        edge_dropout (float, optional): Share :math:`\rho` of pruned interactions in [0, 1).
            (default: 0.1)
        reg_weight (float, optional): Weight :math:`\lambda` of the layer-0 rows' squares.
            (default: 1e-3)

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(
        self,
        num_users: int,
        num_items: int,
        embedding_dim: int = 64,
        num_layers: int = 4,
        edge_dropout: float = 0.1,
        reg_weight: float = 1e-3,
    ) -> None:
        check_positive("num_layers", num_layers)
        check_rate("edge_dropout", edge_dropout)
        super().__init__(num_users, num_items, embedding_dim, num_layers, reg_weight)
        self.num_layers = num_layers
        self.edge_dropout = edge_dropout
        self.conv = LayerRefinementConv()
        del self.propagation  # LightGCN's

    @property
    def graph_sampling(self) -> str:  # type: ignore[override]
        """Every epoch, if interactions are pruned."""
        return "epoch" if self.edge_dropout > 0 else "never"

    def sample_graph(
        self, graph: Graph, epoch: int, generator: torch.Generator | None = None
    ) -> Graph:
        """Prunes the interactions, by degree and uniformly in turns."""
        if self.edge_dropout == 0:
            return graph
        weight = graph.weighted_adjacency(INTERACTS, "NormalizeInteractions").weight
        num_kept = num_kept_edges(weight.numel(), self.edge_dropout)
        if epoch % 2 == 1:
            weight = torch.ones_like(weight)
        return prune_interactions(graph, degree_sensitive_sample(weight, num_kept, generator))

    def encode(
        self,
        hidden: dict[str, Tensor],
        context: dict[str, Any],
        graph: Graph,
        delta: dict[str, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Propagates and refines the embeddings, and adds up the layers."""
        to_item = graph.weighted_adjacency(INTERACTS, "NormalizeInteractions")
        to_user = graph.adjacency[INTERACTED_BY]
        reached = {site: add_delta(hidden[site], delta, site) for site in self.sites}
        layer = first = (reached["user/embedding"], reached["item/embedding"])
        total: tuple[Tensor, ...] = ()
        for _ in range(self.num_layers):
            user, item = layer
            layer = (
                self.conv((item, user), to_user, first[0]),
                self.conv((user, item), to_item, first[1]),
            )
            total = tuple(map(torch.add, total, layer)) if total else layer
        compared = dict(zip(("user", "item"), total, strict=True))
        output = {
            **compared,
            "user/embedding": self.user_embedding.weight,
            "item/embedding": self.item_embedding.weight,
        }
        return reached, output, compared

    def perturbed_loss(self, stages: Stages, batch: Triplets) -> dict[str, Tensor]:
        """Summed, not averaged, BPR on the final vectors."""
        user = batch.at("user", stages.output["user"])
        positive, negative = triplet_scores(user, batch.at("item", stages.output["item"]))
        return {"bpr": -nn.functional.logsigmoid(positive - negative).sum()}

    def loss(self, stages: Stages, batch: Triplets) -> dict[str, Tensor]:
        """BPR on the final vectors, squares of the layer-0 rows."""
        terms = self.perturbed_loss(stages, batch)
        if self.reg_weight > 0:
            user = batch.at("user", stages.output["user/embedding"])
            item = batch.at("item", stages.output["item/embedding"])
            terms["regularization"] = self.reg_weight * l2_loss(user, item)
        return terms
