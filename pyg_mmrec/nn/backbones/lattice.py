"""LATTICE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch_geometric.data import HeteroData
from torch_geometric.transforms import BaseTransform

from pyg_mmrec.argument_checks import check_choice, check_positive, check_weight
from pyg_mmrec.data import Adjacency, Graph
from pyg_mmrec.data.adjacency import on_shared_edges
from pyg_mmrec.data.graph import INTERACTED_BY, INTERACTS, SIMILAR
from pyg_mmrec.nn.backbones.content_backbone import ContentBackbone, draw_linear_layers
from pyg_mmrec.nn.backbones.stages import EVERY_ROW, Rows, Stages, Triplets, add_delta
from pyg_mmrec.nn.conv import RowNormalizedConv, WeightedConv, cosine_knn_adjacency
from pyg_mmrec.nn.functional import normalize_rows
from pyg_mmrec.nn.losses import bpr_loss, l2_loss, triplet_scores
from pyg_mmrec.transforms import KNN_INDEXES, ModalityKNNGraph, normalize_item_graph


def normalized_item_graph(adjacency: Adjacency) -> Adjacency:
    """An item graph with its weights divided by the root of both ends' row sums."""
    num_items = adjacency.size[1]
    weight = normalize_item_graph(adjacency.edge_index, adjacency.weight, num_items)
    return adjacency.with_weight(weight)


def with_modality_item_graphs(graph: Graph, modalities: Sequence[str]) -> Graph:
    """The graph with each modality's item graph normalised, all on the union of their edges, and
    without an item graph made of them.
    """
    edge_types = [(name, "similar", name) for name in modalities]
    parts = [normalized_item_graph(graph.adjacency[edge_type]) for edge_type in edge_types]
    adjacency = {**graph.adjacency, **dict(zip(edge_types, on_shared_edges(parts), strict=True))}
    adjacency.pop(SIMILAR, None)
    return graph.replace(adjacency=adjacency)


def mixed_item_graph(parts: dict[str, Adjacency], logits: Tensor, graph: Graph) -> Adjacency:
    r"""Mixes the item graphs of modalities, which share their edges, by weights
    :math:`\mathrm{softmax}(\mathbf{a})`; in the row of an item that lacks a modality those of the
    others are scaled to sum to 1.
    """
    graphs = list(parts.values())
    share = logits.softmax(0)
    if any(name in graph.mask for name in parts):
        ones = torch.ones(graph.num_items, dtype=torch.bool, device=logits.device)
        share = share * torch.stack([graph.mask.get(name, ones) for name in parts], 1)
        share = share / share.sum(1, keepdim=True).clamp(min=torch.finfo(share.dtype).tiny)
        share = share.index_select(0, graphs[0].edge_index[1])
    weight = torch.stack([part.weight for part in graphs], 1)
    return graphs[0].with_weight((share * weight).sum(1))


class LATTICE(ContentBackbone):
    r"""LATTICE (`"Mining Latent Structures for Multimedia Recommendation"
    <https://arxiv.org/abs/2104.09036>`_, ACM MM 2021).

    Items exchange their ID embeddings over an item graph that is learned from the projected
    modalities :math:`\mathbf{z}^m = \mathbf{W}_m \mathbf{x}^m + \mathbf{b}_m`:

    .. math::
        \mathbf{S} = (1 - \lambda_c) \, \mathrm{norm} \Big( \sum_m \alpha_m
        \mathrm{kNN}(\mathbf{z}^m) \Big) + \lambda_c \sum_m \alpha_m \,
        \mathrm{norm}(\mathrm{kNN}(\mathbf{x}^m)), \qquad \alpha = \mathrm{softmax}(\mathbf{a})

    .. math::
        \mathbf{h} = \mathbf{S}^{L_i} \mathbf{Q}, \qquad
        \mathbf{y}_i = \mathbf{e}_i + \mathbf{h}_i / \lVert \mathbf{h}_i \rVert, \qquad
        \mathcal{L} = \mathrm{BPR} + \frac{\lambda}{2 B} \sum
        (\lVert \mathbf{e}_u \rVert^2 + \lVert \mathbf{y}_i \rVert^2 + \lVert \mathbf{y}_j \rVert^2)

    kNN weighs edges by cosine similarity and norm divides by :math:`\sqrt{r_i r_j}`, row sums;
    :math:`\mathbf{e}` is the mean over the layers of light propagation with
    :math:`\mathbf{D}^{-1} (\mathbf{A} + \mathbf{I})`. Everything stays sparse.

    In training, :meth:`sample_graph` learns the graph once per epoch; gradients reach
    :math:`\mathbf{z}^m` and :math:`\mathbf{a}` in the epoch's first step, then the graph is a
    constant. Where the graph that is given has no learned item graph, as in ranking, it is learned
    from the present weights. The hidden sites ``item/layer_1``, … hold :math:`\mathbf{h}` after
    each item-graph layer.

    Args:
        num_users (int): Number of users.
        num_items (int): Number of items.
        in_channels (dict[str, int]): Feature size of each modality.
        embedding_dim (int, optional): Size of the embeddings and projections. (default: 64)
        num_item_layers (int, optional): Item-graph layers :math:`L_i`, 1 or more. (default: 1)
        num_layers (int, optional): User-item layers. (default: 2)
        k (int, optional): Neighbours in each modality's item graphs. (default: 10)
        knn_index (str, optional): How those of the original graphs are found: :obj:`"flat"`
            (exact, as the learned ones always are), :obj:`"ivf"`, :obj:`"hnsw"`, or :obj:`"auto"`,
            by the number of items; see :class:`~pyg_mmrec.transforms.ModalityKNNGraph`.
            (default: :obj:`"flat"`)
        faiss_options (dict[str, int], optional): Options of that index, such as ``nprobe``.
            (default: what fits the number of items)
        original_weight (float, optional): Share :math:`\lambda_c` of the original graphs in [0, 1].
            (default: 0.9)
        cf_model (str, optional): User-item part: :obj:`"lightgcn"`, or :obj:`"mf"` for the
            embeddings themselves. (default: :obj:`"lightgcn"`)
        reg_weight (float, optional): Weight :math:`\lambda` of the squares. (default: 1e-3)
        batch_size (int, optional): The configured batch size :math:`B` that divides the squares,
            also in an epoch's smaller last batch. (default: 2048)
        modalities (list[str], optional): Modalities to use, in order.
            (default: all, as image, text, then others by name)
        train_features (bool, optional): Whether raw features are trained along; the preset
            ``mmrec`` does. The original graphs stay those of the features as loaded.
            (default: :obj:`False`)
        features (dict[str, torch.Tensor], optional): Raw features to start from, if trained.

    Raises:
        ValueError: If an option is out of range or features are missing.

    .. note::
        The layer of an item without neighbours is zero and is not normalised; with a perturbation
        added, however small, it is normalised to length 1.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {}, "mmrec": {"train_features": True}}
    training_defaults: ClassVar[dict[str, Any]] = {"lr_decay": 0.96, "lr_decay_epochs": 50}
    graph_sampling = "epoch"
    has_item_graph = True
    loss_reads_content = False  # but the item graph that has been learned from the modalities

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
        original_weight: float = 0.9,
        cf_model: str = "lightgcn",
        reg_weight: float = 1e-3,
        batch_size: int = 2048,
        modalities: Sequence[str] | None = None,
        train_features: bool = False,
        features: Mapping[str, Tensor] | None = None,
    ) -> None:
        check_positive("embedding_dim", embedding_dim)
        super().__init__(num_users, num_items, in_channels, modalities, train_features, features)
        for name, number in (
            ("num_item_layers", num_item_layers), ("num_layers", num_layers), ("k", k),
            ("batch_size", batch_size),
        ):  # fmt: skip
            check_positive(name, number)
        check_weight("reg_weight", reg_weight)
        check_weight("original_weight", original_weight)
        if original_weight > 1:
            raise ValueError(f"'original_weight' needs to lie in [0, 1] (got {original_weight})")
        check_choice("knn_index", knn_index, KNN_INDEXES)
        check_choice("cf_model", cf_model, ("lightgcn", "mf"))
        self.require_features()
        self.num_item_layers = num_item_layers
        self.num_layers = num_layers
        self.k = k
        self.knn_graph = ModalityKNNGraph(k, self.modalities, knn_index, faiss_options)
        self.original_weight = original_weight
        self.cf_model = cf_model
        self.reg_weight = reg_weight
        self.batch_size = batch_size
        self.user_embedding = nn.Embedding(num_users, embedding_dim)
        self.item_embedding = nn.Embedding(num_items, embedding_dim)
        self.projection = self.linear_projections(embedding_dim)
        self.modality_logits = nn.Parameter(torch.empty(len(self.modalities)))
        self.conv = RowNormalizedConv()
        self.item_conv = WeightedConv()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws embeddings and projections, Xavier uniform; modalities start with equal weights,
        biases at 0.
        """
        nn.init.xavier_uniform_(self.user_embedding.weight)
        nn.init.xavier_uniform_(self.item_embedding.weight)
        nn.init.zeros_(self.modality_logits)
        draw_linear_layers(self.projection, nn.init.xavier_uniform_)

    # The item graph ------------------------------------------------------------------------------

    @property
    def transform(self) -> BaseTransform:
        """The original item graph of each modality."""
        return self.knn_graph

    def graph(self, data: HeteroData) -> Graph:
        """The tensors to compute on: unweighted interactions and the original item graphs, and no
        learned one.
        """
        graph = with_modality_item_graphs(super().graph(data), self.modalities)
        to_item = graph.adjacency[INTERACTS]  # may be weighted as another backbone needs it
        return graph.with_interactions(to_item.with_weight(torch.ones_like(to_item.weight)))

    def item_graph(self, graph: Graph) -> Adjacency:
        """The item graph :math:`S`: the graph's, or learned from the present weights."""
        similar = graph.adjacency.get(SIMILAR)
        return self._learned(self.content(graph), graph) if similar is None else similar

    def _learned(self, z: dict[str, Tensor], graph: Graph) -> Adjacency:
        learned = [
            cosine_knn_adjacency(z[name], self.k, graph.mask.get(name)) for name in self.modalities
        ]
        parts = dict(zip(self.modalities, on_shared_edges(learned), strict=True))
        mixed = normalized_item_graph(mixed_item_graph(parts, self.modality_logits, graph))
        originals = {name: graph.adjacency[name, "similar", name] for name in self.modalities}
        original = mixed_item_graph(originals, self.modality_logits, graph)
        mixed, original = on_shared_edges([mixed, original])
        share = self.original_weight
        return mixed.with_weight((1 - share) * mixed.weight + share * original.weight)

    def sample_graph(
        self, graph: Graph, epoch: int, generator: torch.Generator | None = None
    ) -> Graph:
        """Adds the learned item graph, with its gradient."""
        learned = self._learned(self.content(graph), graph)
        return graph.replace(adjacency={**graph.adjacency, SIMILAR: learned})

    def item_vectors_on(
        self, similar: Adjacency, stages: Stages, graph: Graph, rows: Rows = EVERY_ROW
    ) -> Tensor:
        """Runs the item-graph layers anew; the user-item part stays."""
        h = self.item_embedding.weight
        for _ in range(self.num_item_layers):
            h = self.item_conv(h, similar)
        return stages.context["item/propagated"] + normalize_rows(rows.at("item", h))

    # Stages --------------------------------------------------------------------------------------

    @property
    def sites(self) -> dict[str, int]:
        """The item vectors after each item-graph layer."""
        channels = self.item_embedding.embedding_dim
        return {f"item/layer_{layer + 1}": channels for layer in range(self.num_item_layers)}

    @property
    def rowwise(self) -> bool:
        """True if nothing is propagated after the one hidden site."""
        return self.num_item_layers == 1

    def project(self, graph: Graph, rows: Rows = EVERY_ROW) -> dict[str, Tensor]:
        """Projects the modalities, of every item; none for the rows of a batch on a graph whose
        item graph is learned already, where nothing else reads them.
        """
        if SIMILAR in graph.adjacency and rows is not EVERY_ROW:
            return {}
        return super().project(graph)

    def fuse(
        self, modality: dict[str, Tensor], graph: Graph, rows: Rows = EVERY_ROW
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Runs the first item-graph layer; the user-item part does not depend on it: context."""
        similar = graph.adjacency.get(SIMILAR)
        if similar is None:
            similar = self._learned(modality, graph)
        user, item = self._collaborative(graph)
        context: dict[str, Any] = {
            "user/propagated": rows.at("user", user),
            "item/propagated": rows.at("item", item),
        }
        if self.num_item_layers > 1:
            context["similar"] = similar
        layer = self.item_conv(self.item_embedding.weight, similar)
        return {"item/layer_1": rows.at("item", layer)}, context

    def _collaborative(self, graph: Graph) -> tuple[Tensor, Tensor]:
        """The user-item part: the mean over all layers."""
        user, item = self.user_embedding.weight, self.item_embedding.weight
        if self.cf_model == "mf":
            return user, item
        user_sum, item_sum = user, item
        for _ in range(self.num_layers):  # Horner's scheme, as in LightPropagation
            user_sum, item_sum = (
                user + self.conv((item_sum, user_sum), graph.adjacency[INTERACTED_BY]),
                item + self.conv((user_sum, item_sum), graph.adjacency[INTERACTS]),
            )
        return user_sum / (self.num_layers + 1), item_sum / (self.num_layers + 1)

    def encode(
        self,
        hidden: dict[str, Tensor],
        context: dict[str, Any],
        graph: Graph,
        delta: dict[str, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Runs the other item-graph layers and joins both parts."""
        h = add_delta(hidden["item/layer_1"], delta, "item/layer_1")
        reached = {"item/layer_1": h}
        for site in list(self.sites)[1:]:
            h = add_delta(self.item_conv(h, context["similar"]), delta, site)
            reached[site] = h
        item = context["item/propagated"] + normalize_rows(h)
        return reached, {"user": context["user/propagated"], "item": item}, {"item": item}

    def loss(self, stages: Stages, batch: Triplets) -> dict[str, Tensor]:
        """BPR and squares, on the final vectors."""
        user = batch.at("user", stages.output["user"])
        item = batch.at("item", stages.output["item"])
        terms = {"bpr": bpr_loss(*triplet_scores(user, item))}
        if self.reg_weight > 0:
            terms["regularization"] = self.reg_weight * l2_loss(user, item) / self.batch_size
        return terms
