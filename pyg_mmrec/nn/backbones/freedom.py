"""FREEDOM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch_geometric.transforms import BaseTransform, Compose

from pyg_mmrec.argument_checks import check_choice, check_positive, check_rate, check_weight
from pyg_mmrec.data import Adjacency, Graph
from pyg_mmrec.data.graph import INTERACTED_BY, INTERACTS, SIMILAR
from pyg_mmrec.data.multimodal_dataset import FEATURE_FILES
from pyg_mmrec.nn.backbones.content_backbone import ContentBackbone, draw_linear_layers
from pyg_mmrec.nn.backbones.stages import EVERY_ROW, Rows, Stages, Triplets, add_delta
from pyg_mmrec.nn.conv import LightPropagation, WeightedConv
from pyg_mmrec.nn.losses import bpr_loss, triplet_scores
from pyg_mmrec.transforms import (
    KNN_INDEXES,
    FuseModalityGraphs,
    ModalityKNNGraph,
    NormalizeInteractions,
    degree_sensitive_sample,
    num_kept_edges,
    prune_interactions,
)


class FREEDOM(ContentBackbone):
    r"""FREEDOM (`Zhou & Shen, ACM MM 2023 <https://arxiv.org/abs/2211.06924>`_): a frozen item
    graph and degree-sensitive pruning of the interactions.

    .. math::
        \mathbf{h} = \mathbf{S}^{L_i} \mathbf{Q}, \qquad
        \mathbf{S} = \textstyle\sum_m w_m \mathbf{S}^m, \qquad
        [\mathbf{U}; \mathbf{I}] = \mathrm{LightGCN}(\mathbf{P}, \mathbf{Q}), \qquad
        \mathbf{y}_i = \mathbf{I}_i + \mathbf{h}_i

    .. math::
        \mathcal{L} = \mathrm{BPR}(\mathbf{U}_u, \mathbf{y}_i, \mathbf{y}_j)
        + \lambda \textstyle\sum_m \mathrm{BPR}(\mathbf{U}_u, \mathbf{z}^m_i, \mathbf{z}^m_j)

    In training, each epoch keeps :math:`(1 - \rho) n` interactions, drawn without replacement with
    probability :math:`\propto 1 / \sqrt{d_u d_i}`; ranking uses all of them. The hidden sites
    ``item/layer_1``, … hold :math:`\mathbf{h}` after each item-graph layer.

    Args:
        num_users (int): Number of users.
        num_items (int): Number of items.
        in_channels (dict[str, int]): Feature size of each modality that has features; at
            ``reg_weight=0`` none is read beside the item graphs.
        embedding_dim (int, optional): Size of the embeddings. (default: 64)
        num_item_layers (int, optional): Item-graph layers :math:`L_i`, 1 or more. (default: 1)
        num_layers (int, optional): User-item layers. (default: 2)
        k (int, optional): Neighbours in each modality's item graph. (default: 10)
        knn_index (str, optional): How they are found: :obj:`"flat"` (exact), :obj:`"ivf"`,
            :obj:`"hnsw"`, or :obj:`"auto"`, by the number of items; see
            :class:`~pyg_mmrec.transforms.ModalityKNNGraph`. (default: :obj:`"flat"`)
        faiss_options (dict[str, int], optional): Options of that index, such as ``nprobe``.
            (default: what fits the number of items)
        modality_weights (dict[str, float], optional): Weights :math:`w_m`, summing to 1.
            (default: 0.1 for the first modality, the rest shared equally by the others)
        edge_dropout (float, optional): Share :math:`\rho` of pruned interactions in [0, 1).
            (default: 0.8)
        reg_weight (float, optional): Weight :math:`\lambda` of the modalities' own BPR.
            (default: 1e-3)
        modalities (list[str], optional): Modalities to use, in order.
            (default: all, as image, text, then others by name)
        train_features (bool, optional): Whether raw features are trained along; the preset
            ``mmrec`` does. (default: :obj:`False`)
        features (dict[str, torch.Tensor], optional): Raw features to start from, if trained.

    Raises:
        ValueError: If a number is out of range, weights do not fit the modalities, or features
            are missing.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {}, "mmrec": {"train_features": True}}
    graph_sampling = "epoch"
    has_item_graph = True

    def __init__(
        self,
        num_users: int,
        num_items: int,
        in_channels: Mapping[str, int],
        embedding_dim: int = 64,
        num_item_layers: int = 1,
        num_layers: int = 2,
        k: int = 10,
        knn_index: str = "flat",
        faiss_options: Mapping[str, int] | None = None,
        modality_weights: Mapping[str, float] | None = None,
        edge_dropout: float = 0.8,
        reg_weight: float = 1e-3,
        modalities: Sequence[str] | None = None,
        train_features: bool = False,
        features: Mapping[str, Tensor] | None = None,
    ) -> None:
        check_positive("embedding_dim", embedding_dim)
        super().__init__(num_users, num_items, in_channels, modalities, train_features, features)
        check_positive("num_item_layers", num_item_layers)
        check_positive("k", k)
        check_choice("knn_index", knn_index, KNN_INDEXES)
        check_weight("reg_weight", reg_weight)
        check_rate("edge_dropout", edge_dropout)
        missing = [name for name in self.modalities if name not in self.in_channels]
        if reg_weight > 0 and missing:
            raise ValueError(
                f"FREEDOM with reg_weight > 0 reads the features of {missing}, which the data "
                f"lack: set reg_weight=0 to use their item graphs alone, or add {FEATURE_FILES}"
            )
        if modality_weights is None:
            others = len(self.modalities) - 1
            shares = [0.1] + [0.9 / others] * others if others else [1.0]
            modality_weights = dict(zip(self.modalities, shares, strict=True))
        if set(modality_weights) != set(self.modalities):
            raise ValueError(
                f"'modality_weights' needs one weight for each of {self.modalities} "
                f"(got {sorted(modality_weights)})"
            )
        FuseModalityGraphs("binary", weights=modality_weights)  # refuses a sum other than 1 now
        self.k = k
        self.knn_graph = ModalityKNNGraph(k, self.modalities, knn_index, faiss_options)
        self.edge_dropout = edge_dropout
        self.reg_weight = reg_weight
        self.num_item_layers = num_item_layers
        self.modality_weights = dict(modality_weights)
        self.user_embedding = nn.Embedding(num_users, embedding_dim)
        self.item_embedding = nn.Embedding(num_items, embedding_dim)
        self.projection = self.linear_projections(embedding_dim)
        self.propagation = LightPropagation(num_layers)
        self.item_conv = WeightedConv()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws embeddings and projections, Xavier uniform; biases start at 0."""
        nn.init.xavier_uniform_(self.user_embedding.weight)
        nn.init.xavier_uniform_(self.item_embedding.weight)
        draw_linear_layers(self.projection, nn.init.xavier_uniform_)

    @property
    def transform(self) -> BaseTransform:
        """Normalised interactions and the fused item graph."""
        return Compose(
            [
                NormalizeInteractions(),
                self.knn_graph,
                FuseModalityGraphs("binary", weights=self.modality_weights),
            ]
        )

    def sample_graph(
        self, graph: Graph, epoch: int, generator: torch.Generator | None = None
    ) -> Graph:
        """Prunes the interactions by degree, renormalised on the kept ones."""
        if self.edge_dropout == 0:
            return graph
        full = graph.weighted_adjacency(INTERACTS, "NormalizeInteractions")
        num_kept = num_kept_edges(full.num_edges, self.edge_dropout)
        # The full graph's symmetric normalisation 1 / sqrt(d_u d_i) is the sampling weight.
        return prune_interactions(graph, degree_sensitive_sample(full.weight, num_kept, generator))

    def item_vectors_on(
        self, similar: Adjacency, stages: Stages, graph: Graph, rows: Rows = EVERY_ROW
    ) -> Tensor:
        """Runs the item-graph layers anew; the user-item part stays."""
        h = self.item_embedding.weight
        for _ in range(self.num_item_layers):
            h = self.item_conv(h, similar)
        return stages.context["item/propagated"] + rows.at("item", h)

    @property
    def sites(self) -> dict[str, int]:
        """The item vectors after each item-graph layer."""
        channels = self.item_embedding.embedding_dim
        return {f"item/layer_{layer + 1}": channels for layer in range(self.num_item_layers)}

    @property
    def rowwise(self) -> bool:
        """True if nothing is propagated after the one hidden site."""
        return self.num_item_layers == 1

    @property
    def loss_reads_content(self) -> bool:  # type: ignore[override]
        """True if the projections have a loss of their own, the only one that reads them."""
        return self.reg_weight > 0

    def project(self, graph: Graph, rows: Rows = EVERY_ROW) -> dict[str, Tensor]:
        """Projects the modalities for their own loss, if that has a weight."""
        return {} if self.reg_weight == 0 else super().project(graph, rows)

    def item_graph(self, graph: Graph) -> Adjacency:
        """The fused item graph."""
        return graph.weighted_adjacency(SIMILAR, "FuseModalityGraphs")

    def fuse(
        self, modality: dict[str, Tensor], graph: Graph, rows: Rows = EVERY_ROW
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Runs the first item-graph layer; the user-item part does not depend on it: context."""
        to_item = graph.weighted_adjacency(INTERACTS, "NormalizeInteractions")
        similar = self.item_graph(graph)
        user, item = self.propagation(
            self.user_embedding.weight,
            self.item_embedding.weight,
            to_item,
            graph.adjacency[INTERACTED_BY],
            rows.ids,
        )
        context: dict[str, Any] = {"user/propagated": user, "item/propagated": item}
        for name, z in modality.items():
            context[f"item/z/{name}"] = z
            if name in graph.mask:
                context[f"item/mask/{name}"] = rows.at("item", graph.mask[name])
        layer = self.item_conv(self.item_embedding.weight, similar)
        return {"item/layer_1": rows.at("item", layer)}, context

    def encode(
        self,
        hidden: dict[str, Tensor],
        context: dict[str, Any],
        graph: Graph,
        delta: dict[str, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Runs the other item-graph layers and joins both parts."""
        reached = {"item/layer_1": add_delta(hidden["item/layer_1"], delta, "item/layer_1")}
        h = reached["item/layer_1"]
        for site in list(self.sites)[1:]:
            h = add_delta(self.item_conv(h, graph.adjacency[SIMILAR]), delta, site)
            reached[site] = h
        item = context["item/propagated"] + h
        output = {"user": context["user/propagated"], "item": item}
        output.update((key, x) for key, x in context.items() if not key.endswith("/propagated"))
        return reached, output, {"item": item}

    def perturbed_loss(self, stages: Stages, batch: Triplets) -> dict[str, Tensor]:
        """BPR on the final vectors; the projections come before the sites."""
        user = batch.at("user", stages.output["user"])
        item = batch.at("item", stages.output["item"])
        return {"bpr": bpr_loss(*triplet_scores(user, item))}

    def loss(self, stages: Stages, batch: Triplets) -> dict[str, Tensor]:
        """BPR on the final vectors, and of each modality's projection."""
        terms = self.perturbed_loss(stages, batch)
        if self.reg_weight > 0:
            user = batch.at("user", stages.output["user"])
            for name in self.modalities:
                loss = self._content_loss(name, user, stages, batch)
                terms[f"bpr_{name}"] = self.reg_weight * loss
        return terms

    def _content_loss(self, name: str, user: Tensor, stages: Stages, batch: Triplets) -> Tensor:
        z = batch.at("item", stages.output[f"item/z/{name}"])
        positive, negative = triplet_scores(user, z)
        mask = stages.output.get(f"item/mask/{name}")
        if mask is None:
            return bpr_loss(positive, negative)
        present = batch.at("item", mask).view(2, -1).all(0)
        loss = -nn.functional.logsigmoid(positive - negative) * present
        return loss.sum() / present.sum().clamp(min=1)
