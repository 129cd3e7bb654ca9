"""LightGCN."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch_geometric.transforms import BaseTransform

from pyg_mmrec.argument_checks import check_positive, check_weight
from pyg_mmrec.data import Graph
from pyg_mmrec.data.graph import INTERACTED_BY, INTERACTS
from pyg_mmrec.nn.backbones.backbone import Backbone
from pyg_mmrec.nn.backbones.stages import EVERY_ROW, Rows, Stages, Triplets, add_delta
from pyg_mmrec.nn.conv import LightPropagation
from pyg_mmrec.nn.losses import bpr_loss, emb_loss, triplet_scores
from pyg_mmrec.transforms import NormalizeInteractions


class LightGCN(Backbone):
    r"""LightGCN (`He et al., SIGIR 2020 <https://arxiv.org/abs/2002.02126>`_), on IDs alone.

    .. math::
        \mathbf{E} = \frac{1}{L+1} \sum_{l=0}^{L} \hat{\mathbf{A}}^l [\mathbf{P}; \mathbf{Q}],
        \qquad \mathcal{L} = \mathrm{BPR} + \lambda \, \mathrm{EmbLoss}(P_u, Q_i, Q_j)

    The hidden sites ``user/embedding`` and ``item/embedding`` are the layer-0 embeddings.

    Args:
        num_users (int): Number of users.
        num_items (int): Number of items.
        embedding_dim (int, optional): Size of the embeddings. (default: 64)
        num_layers (int, optional): Number of propagation layers :math:`L`. (default: 2)
        reg_weight (float, optional): Weight :math:`\lambda` of the layer-0 rows' norms, as in the
            field's toolboxes; the paper squares them. (default: 1e-4)

    Raises:
        ValueError: If a number is out of range.
    """

    gathers_output = True

    def __init__(
        self,
        num_users: int,
        num_items: int,
        embedding_dim: int = 64,
        num_layers: int = 2,
        reg_weight: float = 1e-4,
    ) -> None:
        super().__init__(num_users, num_items)
        check_positive("embedding_dim", embedding_dim)
        check_weight("reg_weight", reg_weight)
        self.reg_weight = reg_weight
        self.user_embedding = nn.Embedding(num_users, embedding_dim)
        self.item_embedding = nn.Embedding(num_items, embedding_dim)
        self.propagation = LightPropagation(num_layers)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the embeddings, Xavier uniform."""
        nn.init.xavier_uniform_(self.user_embedding.weight)
        nn.init.xavier_uniform_(self.item_embedding.weight)

    @property
    def transform(self) -> BaseTransform:
        """Symmetric normalisation of the interactions."""
        return NormalizeInteractions()

    @property
    def sites(self) -> dict[str, int]:
        """The layer-0 embeddings."""
        channels = self.user_embedding.embedding_dim
        return {"user/embedding": channels, "item/embedding": channels}

    def fuse(
        self, modality: dict[str, Tensor], graph: Graph, rows: Rows = EVERY_ROW
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Takes the embeddings as they are."""
        user, item = self.user_embedding.weight, self.item_embedding.weight
        context = {} if rows is EVERY_ROW else {"rows": rows}
        return {"user/embedding": user, "item/embedding": item}, context

    def encode(
        self,
        hidden: dict[str, Tensor],
        context: dict[str, Any],
        graph: Graph,
        delta: dict[str, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Propagates the embeddings over the interactions."""
        to_item = graph.weighted_adjacency(INTERACTS, "NormalizeInteractions")
        rows = context.get("rows", EVERY_ROW)
        reached = {site: add_delta(hidden[site], delta, site) for site in self.sites}
        user, item = self.propagation(
            reached["user/embedding"],
            reached["item/embedding"],
            to_item,
            graph.adjacency[INTERACTED_BY],
            rows.ids,
        )
        output = {
            "user": user,
            "item": item,
            "user/embedding": rows.at("user", self.user_embedding.weight),
            "item/embedding": rows.at("item", self.item_embedding.weight),
        }
        return reached, output, {"user": user, "item": item}

    def perturbed_loss(self, stages: Stages, batch: Triplets) -> dict[str, Tensor]:
        """BPR on the final vectors."""
        user = batch.at("user", stages.output["user"])
        item = batch.at("item", stages.output["item"])
        return {"bpr": bpr_loss(*triplet_scores(user, item), 1e-10)}

    def loss(self, stages: Stages, batch: Triplets) -> dict[str, Tensor]:
        """BPR on the final vectors, norm penalty on the layer-0 rows."""
        terms = self.perturbed_loss(stages, batch)
        if self.reg_weight > 0:
            user = batch.at("user", stages.output["user/embedding"])
            positive, negative = batch.at("item", stages.output["item/embedding"]).chunk(2)
            terms["regularization"] = self.reg_weight * emb_loss(user, positive, negative)
        return terms
