"""LightGCN with modality features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.transforms import BaseTransform

from pyg_mmrec.argument_checks import check_positive, check_weight
from pyg_mmrec.data import Graph
from pyg_mmrec.data.graph import INTERACTED_BY, INTERACTS
from pyg_mmrec.nn.backbones.content_backbone import ContentBackbone, draw_linear_layers
from pyg_mmrec.nn.backbones.stages import EVERY_ROW, Rows, Stages, Triplets, add_delta
from pyg_mmrec.nn.conv import LightPropagation
from pyg_mmrec.nn.losses import bpr_loss, l2_loss, triplet_scores
from pyg_mmrec.transforms import NormalizeInteractions


class VLightGCN(ContentBackbone):
    r"""LightGCN on IDs and modalities ("Less is More: Information Bottleneck Denoised Multimedia
    Recommendation", Eq. 4-7).

    .. math::
        \mathbf{X}^{(0)} = [\mathbf{P} \Vert \mathbf{C}], \qquad
        \mathbf{Y}^{(0)} = [\mathbf{Q} \Vert \mathbf{Z}^1 \Vert \mathbf{Z}^2 \ldots], \qquad
        \mathbf{Z}^m = \mathbf{W}_m \mathbf{x}^m + \mathbf{b}_m

    .. math::
        [\mathbf{X}; \mathbf{Y}] = \frac{1}{L+1} \sum_{l=0}^{L} \hat{\mathbf{A}}^l
        [\mathbf{X}^{(0)}; \mathbf{Y}^{(0)}], \qquad
        \mathcal{L} = \mathrm{BPR} + \frac{\lambda}{B} \sum ( \lVert X^{(0)}_u \rVert^2 +
        \lVert Y^{(0)}_i \rVert^2 + \lVert Y^{(0)}_j \rVert^2 )

    The users' multimedia embeddings :math:`\mathbf{C}` are free parameters. The hidden site
    ``item/embedding`` is :math:`\mathbf{Y}^{(0)}`.

    Args:
        num_users (int): Number of users.
        num_items (int): Number of items.
        in_channels (dict[str, int]): Feature size of each modality.
        embedding_dim (int, optional): Size of the ID embeddings and of each modality's projection.
            (default: 64)
        num_layers (int, optional): Number of propagation layers :math:`L`. (default: 2)
        reg_weight (float, optional): Weight :math:`\lambda` of the squares of the layer-0 rows.
            (default: 1e-4)
        modalities (list[str], optional): Modalities to use, in order.
            (default: all, as image, text, then others by name)
        train_features (bool, optional): Whether raw features are trained along.
            (default: :obj:`False`)
        features (dict[str, torch.Tensor], optional): Raw features to start from, if trained.

    Raises:
        ValueError: If an option is out of range or features are missing.

    .. note::
        The paper leaves the projection's depth and activation open; here it is linear. It sums BPR
        and penalises whole matrices (Eq. 29); here both are over a batch, divided by its size. It
        draws "model embeddings" from a normal distribution; projections here start Xavier uniform.
    """

    has_user_content = True
    gathers_output = True

    def __init__(
        self,
        num_users: int,
        num_items: int,
        in_channels: Mapping[str, int],
        embedding_dim: int = 64,
        num_layers: int = 2,
        reg_weight: float = 1e-4,
        modalities: Sequence[str] | None = None,
        train_features: bool = False,
        features: Mapping[str, Tensor] | None = None,
    ) -> None:
        check_positive("embedding_dim", embedding_dim)
        super().__init__(num_users, num_items, in_channels, modalities, train_features, features)
        check_weight("reg_weight", reg_weight)
        self.require_features()
        self.reg_weight = reg_weight
        self.user_embedding = nn.Embedding(num_users, embedding_dim)
        self.item_embedding = nn.Embedding(num_items, embedding_dim)
        self.user_content = nn.Embedding(num_users, len(self.modalities) * embedding_dim)
        self.projection = self.linear_projections(embedding_dim)
        self.propagation = LightPropagation(num_layers)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the embeddings from a normal distribution of standard deviation 0.01 as in the
        paper, the projections Xavier uniform; biases start at 0.
        """
        for table in (self.user_embedding, self.item_embedding, self.user_content):
            nn.init.normal_(table.weight, std=0.01)
        draw_linear_layers(self.projection, nn.init.xavier_uniform_)

    @property
    def transform(self) -> BaseTransform:
        """Symmetric normalisation of the interactions."""
        return NormalizeInteractions()

    @property
    def sites(self) -> dict[str, int]:
        """The items' layer 0."""
        return {"item/embedding": (1 + len(self.modalities)) * self.item_embedding.embedding_dim}

    def fuse(
        self, modality: dict[str, Tensor], graph: Graph, rows: Rows = EVERY_ROW
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Joins IDs and modalities."""
        item = torch.cat([self.item_embedding.weight, *modality.values()], 1)
        user = torch.cat([self.user_embedding.weight, self.user_content.weight], 1)
        context: dict[str, Any] = {"user/embedding": user}
        if rows is not EVERY_ROW:
            context["rows"] = rows
        return {"item/embedding": item}, context

    def content_vectors(self, graph: Graph, rows: Rows = EVERY_ROW) -> tuple[Tensor, Tensor]:
        """The users' multimedia embeddings and the items' projected modalities."""
        user = rows.at("user", self.user_content.weight)
        return user, torch.cat(list(self.content(graph, rows).values()), 1)

    def user_content_parameters(self) -> Iterator[nn.Parameter]:
        """The users' multimedia embeddings."""
        return self.user_content.parameters()

    def encode(
        self,
        hidden: dict[str, Tensor],
        context: dict[str, Any],
        graph: Graph,
        delta: dict[str, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Propagates the embeddings over the interactions."""
        rows = context.get("rows", EVERY_ROW)
        reached = {"item/embedding": add_delta(hidden["item/embedding"], delta, "item/embedding")}
        user, item = self.propagation(
            context["user/embedding"],
            reached["item/embedding"],
            graph.weighted_adjacency(INTERACTS, "NormalizeInteractions"),
            graph.adjacency[INTERACTED_BY],
            rows.ids,
        )
        layer_0 = {
            "user/embedding": rows.at("user", context["user/embedding"]),
            "item/embedding": rows.at("item", hidden["item/embedding"]),
        }
        return reached, {"user": user, "item": item, **layer_0}, {"user": user, "item": item}

    def perturbed_loss(self, stages: Stages, batch: Triplets) -> dict[str, Tensor]:
        """BPR on the final vectors."""
        user = batch.at("user", stages.output["user"])
        item = batch.at("item", stages.output["item"])
        return {"bpr": bpr_loss(*triplet_scores(user, item))}

    def loss(self, stages: Stages, batch: Triplets) -> dict[str, Tensor]:
        """BPR on the final vectors, squares of the layer-0 rows."""
        terms = self.perturbed_loss(stages, batch)
        if self.reg_weight > 0:
            user = batch.at("user", stages.output["user/embedding"])
            item = batch.at("item", stages.output["item/embedding"])
            terms["regularization"] = self.reg_weight * 2 * l2_loss(user, item) / user.size(0)
        return terms
