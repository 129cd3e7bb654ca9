"""BM3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch_geometric.transforms import BaseTransform

from pyg_mmrec.argument_checks import check_positive, check_rate, check_weight
from pyg_mmrec.data import Graph
from pyg_mmrec.data.graph import INTERACTED_BY, INTERACTS
from pyg_mmrec.nn.backbones.content_backbone import ContentBackbone, draw_linear_layers
from pyg_mmrec.nn.backbones.stages import EVERY_ROW, Rows, Stages, Triplets, add_delta
from pyg_mmrec.nn.conv import LightPropagation
from pyg_mmrec.nn.functional import normalize_rows, unit_dot
from pyg_mmrec.nn.losses import emb_loss
from pyg_mmrec.transforms import NormalizeInteractions


class BM3(ContentBackbone):
    r"""BM3 (`"Bootstrap Latent Representations for Multi-modal Recommendation"
    <https://arxiv.org/abs/2207.05969>`_, WWW 2023), without negatives.

    .. math::
        \mathcal{L} = d(h(\mathbf{e}_u), \mathbf{t}_i) + d(h(\mathbf{e}_i), \mathbf{t}_u) +
        w \sum_m [d(h(\mathbf{z}^m_i), \mathbf{t}_i) + d(h(\mathbf{z}^m_i), \mathbf{t}^m_i)] +
        \lambda \, \mathrm{EmbLoss}(\mathbf{e}), \qquad d = 1 - \cos

    as means over a batch's interactions, :math:`s_{ui} = h(\mathbf{e}_u)^\top h(\mathbf{e}_i)`.
    :math:`\mathbf{e}` are the vectors of light propagation, to the items' of which their embedding
    is added; :math:`\mathbf{z}^m = \mathbf{W}_m \mathbf{x}^m + \mathbf{b}_m`; targets
    :math:`\mathbf{t}` are dropouts of what they are named for, without gradient; :math:`h` is
    linear. EmbLoss is over all users and items. The hidden sites are :math:`\mathbf{z}^m`, as
    ``item/image``, ``item/text``, …; of what ranks nothing depends on them, so the predictions
    :math:`h(\mathbf{z}^m)` are compared.

    Args:
        num_users (int): Number of users.
        num_items (int): Number of items.
        in_channels (dict[str, int]): Feature size of each modality.
        embedding_dim (int, optional): Size of the embeddings and projections. (default: 64)
        num_layers (int, optional): User-item layers. (default: 1)
        dropout (float, optional): Rate of the targets' dropout in [0, 1). (default: 0.5)
        contrastive_weight (float, optional): Weight :math:`w` of the modalities. (default: 2)
        reg_weight (float, optional): Weight :math:`\lambda` of the norms. (default: 0.1)
        modalities (list[str], optional): Modalities to use, in order.
            (default: all, as image, text, then others by name)
        train_features (bool, optional): Whether raw features are trained along; the preset
            ``mmrec`` does. (default: :obj:`False`)
        features (dict[str, torch.Tensor], optional): Raw features to start from, if trained.

    Raises:
        ValueError: If an option is out of range or features are missing.

    .. note::
        Dropout is drawn once for each row that is encoded: given the rows of a batch, a user who
        stands in it twice has two draws, given all rows one. The expected loss is the same.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {}, "mmrec": {"train_features": True}}

    def __init__(
        self,
        num_users: int,
        num_items: int,
        in_channels: Mapping[str, int],
        embedding_dim: int = 64,
        num_layers: int = 1,
        dropout: float = 0.5,
        contrastive_weight: float = 2.0,
        reg_weight: float = 0.1,
        modalities: Sequence[str] | None = None,
        train_features: bool = False,
        features: Mapping[str, Tensor] | None = None,
    ) -> None:
        check_positive("embedding_dim", embedding_dim)
        super().__init__(num_users, num_items, in_channels, modalities, train_features, features)
        check_weight("contrastive_weight", contrastive_weight)
        check_weight("reg_weight", reg_weight)
        check_rate("dropout", dropout)
        self.require_features()
        self.dropout = dropout
        self.contrastive_weight = contrastive_weight
        self.reg_weight = reg_weight
        self.user_embedding = nn.Embedding(num_users, embedding_dim)
        self.item_embedding = nn.Embedding(num_items, embedding_dim)
        self.predictor = nn.Linear(embedding_dim, embedding_dim)
        self.projection = self.linear_projections(embedding_dim)
        self.propagation = LightPropagation(num_layers)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the embeddings, Xavier uniform, and the linear layers, Xavier normal; their biases
        as :class:`torch.nn.Linear` does.
        """
        nn.init.xavier_uniform_(self.user_embedding.weight)
        nn.init.xavier_uniform_(self.item_embedding.weight)
        draw_linear_layers(self, nn.init.xavier_normal_, zero_bias=False)

    @property
    def transform(self) -> BaseTransform:
        """Symmetric normalisation of the interactions."""
        return NormalizeInteractions()

    @property
    def sites(self) -> dict[str, int]:
        """The projected modalities."""
        return {f"item/{name}": self.predictor.in_features for name in self.modalities}

    @property
    def loss_reads_content(self) -> bool:  # type: ignore[override]
        """True if the modalities have a weight in the loss."""
        return self.contrastive_weight > 0

    @property
    def rowwise(self) -> bool:
        """True, as the modalities meet the propagated vectors row by row."""
        return True

    def fuse(
        self, modality: dict[str, Tensor], graph: Graph, rows: Rows = EVERY_ROW
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Runs the user-item part, which does not depend on the modalities, and draws dropout."""
        user, item = self.propagation(
            self.user_embedding.weight,
            self.item_embedding.weight,
            graph.weighted_adjacency(INTERACTS, "NormalizeInteractions"),
            graph.adjacency[INTERACTED_BY],
        )
        item = item + self.item_embedding.weight
        context: dict[str, Any] = {}
        if self.reg_weight > 0:
            context["regularization"] = self.reg_weight * emb_loss(user, item)
        for kind, vectors in (("user", user), ("item", item)):
            vectors = rows.at(kind, vectors)
            context[kind] = vectors
            context[f"{kind}/predicted"] = self.predictor(vectors)
            context[f"{kind}/target"] = self._target(vectors, self._kept(vectors))
        for name, z in modality.items():
            kept = self._kept(z)
            if kept is not None:
                context[f"item/kept/{name}"] = kept
            if name in graph.mask:
                context[f"item/mask/{name}"] = rows.at("item", graph.mask[name])
        return {f"item/{name}": z for name, z in modality.items()}, context

    def _kept(self, x: Tensor) -> Tensor | None:
        """What dropout keeps, in training."""
        if not self.training or self.dropout == 0:
            return None
        return torch.rand_like(x).lt_(1 - self.dropout)  # fast on a CPU

    @staticmethod
    def _target(x: Tensor, kept: Tensor | None) -> Tensor:
        """Target of unit length, which what dropout divides by does not change."""
        return normalize_rows(x.detach() if kept is None else x.detach() * kept)

    def encode(
        self,
        hidden: dict[str, Tensor],
        context: dict[str, Any],
        graph: Graph,
        delta: dict[str, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Predicts from the modalities."""
        reached = {site: add_delta(hidden[site], delta, site) for site in self.sites}
        output = {key: x for key, x in context.items() if "/kept/" not in key}
        compared = {}
        for name in self.modalities:
            z, kept = reached[f"item/{name}"], context.get(f"item/kept/{name}")
            compared[f"item/predicted/{name}"] = self.predictor(z)
            output[f"item/target/{name}"] = self._target(z, kept)
        return reached, {**output, **compared}, compared

    def perturbed_loss(self, stages: Stages, batch: Triplets) -> dict[str, Tensor]:
        """Distances between the predictions from modalities and their targets."""
        terms: dict[str, Tensor] = {}
        if self.contrastive_weight == 0:
            return terms
        at = self._without_negatives(batch).at
        for name in self.modalities:
            # 1 - cos(x, t) + 1 - cos(x, t') is 2 - <x / |x|, t + t'> for unit targets t and t'.
            target = stages.output["item/target"] + stages.output[f"item/target/{name}"]
            predicted = stages.output[f"item/predicted/{name}"]
            contrast = 2 - unit_dot(at("item", predicted), at("item", target))
            mask = stages.output.get(f"item/mask/{name}")
            if mask is not None:
                has = at("item", mask)
                contrast = (contrast * has).sum() / has.sum().clamp(min=1)
            terms[f"contrast_{name}"] = self.contrastive_weight * contrast.mean()
        return terms

    def loss(self, stages: Stages, batch: Triplets) -> dict[str, Tensor]:
        """Distances between predictions and targets, and the norm penalty."""
        at = self._without_negatives(batch).at
        predicted, target = (
            {kind: at(kind, stages.output[f"{kind}/{part}"]) for kind in ("user", "item")}
            for part in ("predicted", "target")
        )
        alignment = 2 - unit_dot(predicted["user"], target["item"])
        alignment -= unit_dot(predicted["item"], target["user"])
        terms = {"alignment": alignment.mean(), **self.perturbed_loss(stages, batch)}
        if "regularization" in stages.output:
            terms["regularization"] = stages.output["regularization"]
        return terms

    @staticmethod
    def _without_negatives(batch: Triplets) -> Triplets:
        places = batch.places[: batch.positive.numel()]
        return replace(batch, negative=batch.negative[:0], places=places)

    def vectors(self, stages: Stages) -> tuple[Tensor, Tensor]:
        """The predictions of users and items."""
        return stages.output["user/predicted"], stages.output["item/predicted"]
