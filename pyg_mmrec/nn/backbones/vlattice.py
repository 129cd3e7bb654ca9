"""LATTICE with modality features in the representation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import HeteroData
from torch_geometric.transforms import BaseTransform, Compose

from pyg_mmrec.argument_checks import check_choice, check_positive
from pyg_mmrec.data import Adjacency, Graph
from pyg_mmrec.data.graph import SIMILAR
from pyg_mmrec.nn.backbones.lattice import (
    mixed_item_graph,
    normalized_item_graph,
    with_modality_item_graphs,
)
from pyg_mmrec.nn.backbones.stages import EVERY_ROW, Rows, Stages
from pyg_mmrec.nn.backbones.vlightgcn import VLightGCN
from pyg_mmrec.nn.conv import WeightedConv
from pyg_mmrec.nn.functional import normalize_rows
from pyg_mmrec.transforms import KNN_INDEXES, ModalityKNNGraph


class VLATTICE(VLightGCN):
    r"""VLightGCN with an item-item graph ("Less is More: Information Bottleneck Denoised
    Multimedia Recommendation", Eq. 8-12).

    .. math::
        \mathbf{S} = \sum_m \alpha_m \, \mathrm{norm}(\mathrm{kNN}(\mathbf{x}^m)), \qquad
        \mathbf{Y}' = \mathrm{norm}(\mathbf{S})^{L_i} \, \mathbf{Y}^{(0)}, \qquad
        \mathbf{y}_i \leftarrow \mathbf{y}_i + \mathbf{y}'_i / \lVert \mathbf{y}'_i \rVert

    on the vectors of :class:`VLightGCN`, with its loss. kNN weighs edges by cosine similarity, norm
    divides by :math:`\sqrt{r_i r_j}`, row sums, and :math:`\alpha = \mathrm{softmax}(\mathbf{a})`
    is trained, one scalar per modality. The hidden site ``item/embedding`` is
    :math:`\mathbf{Y}^{(0)}`.

    Args:
        num_users (int): Number of users.
        num_items (int): Number of items.
        in_channels (dict[str, int]): Feature size of each modality.
        embedding_dim (int, optional): Size of the ID embeddings and of each modality's projection.
            (default: 64)
        num_item_layers (int, optional): Item-graph layers :math:`L_i`, 1 or more. (default: 1)
        num_layers (int, optional): User-item layers. (default: 2)
        k (int, optional): Neighbours in each modality's item graph. (default: 10)
        knn_index (str, optional): How they are found: :obj:`"flat"` (exact), :obj:`"ivf"`,
            :obj:`"hnsw"`, or :obj:`"auto"`, by the number of items; see
            :class:`~pyg_mmrec.transforms.ModalityKNNGraph`. (default: :obj:`"flat"`)
        faiss_options (dict[str, int], optional): Options of that index, such as ``nprobe``.
            (default: what fits the number of items)
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
        The paper prints :math:`\mathbf{Y} + \mathbf{Y}' / \lVert \mathbf{Y} \rVert`; this is
        LATTICE's form. It builds :math:`\mathbf{S}^m` from vectors :math:`\mathbf{Z}^m`; here the
        graphs are those of the raw features, built once.
    """

    has_item_graph = True
    gathers_output = True

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
        reg_weight: float = 1e-4,
        modalities: Sequence[str] | None = None,
        train_features: bool = False,
        features: Mapping[str, Tensor] | None = None,
    ) -> None:
        check_positive("num_item_layers", num_item_layers)
        check_positive("k", k)
        check_choice("knn_index", knn_index, KNN_INDEXES)
        super().__init__(
            num_users, num_items, in_channels, embedding_dim, num_layers, reg_weight, modalities,
            train_features, features,
        )  # fmt: skip
        self.num_item_layers = num_item_layers
        self.k = k
        self.knn_graph = ModalityKNNGraph(k, self.modalities, knn_index, faiss_options)
        self.modality_logits = nn.Parameter(torch.zeros(len(self.modalities)))
        self.item_conv = WeightedConv()

    def reset_parameters(self) -> None:
        """As :class:`VLightGCN`; modalities start with equal weights."""
        super().reset_parameters()
        if hasattr(self, "modality_logits"):  # not yet when VLightGCN's constructor calls
            nn.init.zeros_(self.modality_logits)

    @property
    def transform(self) -> BaseTransform:
        """Normalised interactions and each modality's item graph."""
        return Compose([super().transform, self.knn_graph])

    def graph(self, data: HeteroData) -> Graph:
        """The tensors to compute on, with the item graphs of the modalities."""
        return with_modality_item_graphs(super().graph(data), self.modalities)

    def item_graph(self, graph: Graph) -> Adjacency:
        """The item graph: the graph's, or mixed by the present weights and normalised."""
        similar = graph.adjacency.get(SIMILAR)
        if similar is not None:
            return similar
        parts = {name: graph.adjacency[name, "similar", name] for name in self.modalities}
        return normalized_item_graph(mixed_item_graph(parts, self.modality_logits, graph))

    def fuse(
        self, modality: dict[str, Tensor], graph: Graph, rows: Rows = EVERY_ROW
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Joins IDs and modalities, and takes the graph's item graph, or mixes it."""
        hidden, context = super().fuse(modality, graph, rows)
        context["similar"] = self.item_graph(graph)
        return hidden, context

    def encode(
        self,
        hidden: dict[str, Tensor],
        context: dict[str, Any],
        graph: Graph,
        delta: dict[str, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Propagates over the interactions and over the item graph, and joins both."""
        reached, output, _ = super().encode(hidden, context, graph, delta)
        rows = context.get("rows", EVERY_ROW)
        item = self._join(output["item"], reached["item/embedding"], context["similar"], rows)
        vectors = {"user": output["user"], "item": item}
        return reached, {**output, "item": item, "item/propagated": output["item"]}, vectors

    def _join(
        self, propagated: Tensor, h: Tensor, similar: Adjacency, rows: Rows = EVERY_ROW
    ) -> Tensor:
        for _ in range(self.num_item_layers):
            h = self.item_conv(h, similar)
        return propagated + normalize_rows(rows.at("item", h))

    def item_vectors_on(
        self, similar: Adjacency, stages: Stages, graph: Graph, rows: Rows = EVERY_ROW
    ) -> Tensor:
        """Runs the item-graph layers anew; the user-item part stays."""
        return self._join(
            stages.output["item/propagated"], stages.hidden["item/embedding"], similar, rows
        )
