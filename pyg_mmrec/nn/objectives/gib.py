"""The graph bottleneck of IBMRec."""

from __future__ import annotations

import torch
from torch import Tensor

from pyg_mmrec.argument_checks import check_weight
from pyg_mmrec.data import Adjacency, Graph
from pyg_mmrec.data.graph import SIMILAR
from pyg_mmrec.nn.backbones import Backbone, Stages, Triplets
from pyg_mmrec.nn.edge_mask import BernoulliEdgeMask
from pyg_mmrec.nn.losses import HSICLoss
from pyg_mmrec.nn.objectives.method import Method, backbones_with

#: Where a refined graph keeps the item graph as it was.
UNMASKED = ("item", "unmasked", "item")


def mask_item_graph(adjacency: Adjacency, mask: Tensor) -> Adjacency:
    r"""Multiplies the weights of an item graph with a mask, and restores their scale:
    :math:`S_{ij} \rho_{ij} \sqrt{r_i / r'_i \cdot r_j / r'_j}` with the row sums :math:`r` before
    and :math:`r'` after. A mask of one value changes nothing, down to a hundredth. A row of which
    less than that is left is scaled as if it were a hundredth, :math:`r / r' = 100`: without a
    limit, an edge from it into another row could outweigh all others there.

    Args:
        adjacency (Adjacency): The item graph.
        mask (torch.Tensor): :math:`\rho`, ``[num_edges]``, in the order of its edges.
    """
    source, target = adjacency.edge_index
    weight = adjacency.weight * mask
    before, after = (
        w.new_zeros(adjacency.size[1]).index_add(0, target, w) for w in (adjacency.weight, weight)
    )
    # Where nothing was, or is left, or the sign has changed, there is no scale to restore.
    share = after / before.masked_fill(before == 0, 1.0)
    scale = share.masked_fill((share <= 0) | (before == 0), 1.0).clamp(min=0.01).rsqrt()
    return adjacency.with_weight(
        weight * scale.index_select(0, target) * scale.index_select(0, source)
    )


class GIB(Method):
    r"""Graph-level information bottleneck of IBMRec ("Less is More: Information Bottleneck
    Denoised Multimedia Recommendation", Eq. 23-28).

    A :class:`~pyg_mmrec.nn.edge_mask.BernoulliEdgeMask` on the item-item graph, which reads
    :math:`[\mathbf{z}_i \Vert \mathbf{q}_i \Vert \mathbf{z}_j \Vert \mathbf{q}_j]`, projected
    modalities and ID embeddings, learns which edges to keep. The recommendation loss runs on the
    masked graph :math:`\mathbf{S}' = \mathbf{S} \odot \rho`, see :func:`mask_item_graph`, and

    .. math::
        \beta \, \mathrm{HSIC}(\mathbf{Y}'_b, \mathbf{Y}_b)

    is added, the dependence between the final vectors of the batch's items on the masked and on
    the full graph. In ranking, edges are weighted with their keep probability:
    ``objective.inference_graph(graph)``. So ranking needs the mask's weights beside the backbone's.

    Args:
        weight (float, optional): :math:`\beta`. (default: 0.5)
        variance (float, optional): :math:`\sigma^2` of the kernels, or :obj:`None` for the median
            heuristic. (default: 0.25)
        normalize (bool, optional): Whether rows are first divided by their norm.
            (default: :obj:`True`)
        unbiased (bool, optional): The unbiased estimator of :func:`~pyg_mmrec.nn.losses.hsic`.
            (default: :obj:`False`)
        hidden_channels (int, optional): Hidden size of the mask's network.
            (default: that of the ID embeddings)
        temperature (float, optional): Of the binary-concrete relaxation. (default: 0.2)
        straight_through (bool, optional): Whether edges are kept or dropped altogether in training.
            (default: :obj:`False`)

    Raises:
        ValueError: If an option is out of range; from :class:`Objective`, if the backbone has no
            item-item graph.

    .. note::
        The paper's equations have no sigmoid around the network and do not restore the scale of
        the kept weights. Here it is restored down to a hundredth of a row: a mask of one value
        :math:`\rho < 0.01` leaves :math:`\rho / 0.01` of the graph.
    """

    name = "gib"
    reads_hidden = False

    def __init__(
        self,
        weight: float = 0.5,
        variance: float | None = 0.25,
        normalize: bool = True,
        unbiased: bool = False,
        hidden_channels: int | None = None,
        temperature: float = 0.2,
        straight_through: bool = False,
    ) -> None:
        super().__init__()
        check_weight("weight", weight)
        # Refuses what is out of range now.
        BernoulliEdgeMask(1, 1 if hidden_channels is None else hidden_channels, temperature)
        self.weight = weight
        self.hsic = HSICLoss(variance, normalize, unbiased)
        self.hidden_channels = hidden_channels
        self.temperature = temperature
        self.straight_through = straight_through

    def attach(self, backbone: Backbone) -> None:
        """Needs an item-item graph."""
        if not backbone.has_item_graph:
            raise ValueError(
                f"GIB masks an item-item graph, and {type(backbone).__name__} has none (its "
                f"'has_item_graph' is false); {backbones_with(lambda item: item.has_item_graph)} "
                f"have one"
            )
        channels = dict(backbone.content_channels)
        embedding = getattr(backbone, "item_embedding", None)
        if embedding is not None:
            channels["id"] = embedding.weight.size(1)
        if not channels:
            raise ValueError(
                f"GIB reads the items of an edge, and {type(backbone).__name__} has neither an "
                f"'item_embedding' nor projected modalities ('content_channels'); "
                f"{backbones_with(lambda item: item.has_item_graph)} have both"
            )
        self.edge_mask = BernoulliEdgeMask(
            sum(channels.values()),
            self.hidden_channels or channels.get("id", 64),
            self.temperature,
            self.straight_through,
        )

    @staticmethod
    def _content(backbone: Backbone, graph: Graph) -> dict[str, Tensor]:
        return backbone.content(graph) if backbone.content_channels else {}

    @staticmethod
    def _items(backbone: Backbone, content: dict[str, Tensor]) -> Tensor:
        """What the mask reads of every item, :math:`[z_i || q_i]`."""
        parts = [content[name] for name in backbone.content_channels]
        embedding = getattr(backbone, "item_embedding", None)
        if embedding is not None:
            parts.append(embedding.weight)
        return torch.cat(parts, 1)

    def _keep(self, backbone: Backbone, graph: Graph) -> tuple[Adjacency, Tensor]:
        similar = backbone.item_graph(graph)
        items = self._items(backbone, self._content(backbone, graph))
        return similar, self.edge_mask.probability(items, similar)

    def keep_probability(self, backbone: Backbone, graph: Graph) -> tuple[Tensor, Tensor]:
        """The edges of the item graph ``[2, num_edges]`` and the probability that each is kept."""
        similar, keep = self._keep(backbone, graph)
        return similar.edge_index, keep

    def refine(self, backbone: Backbone, graph: Graph) -> Graph:
        """The graph with a drawn mask on its item graph."""
        similar, content = backbone.item_graph(graph), self._content(backbone, graph)
        masked = mask_item_graph(similar, self.edge_mask(self._items(backbone, content), similar))
        return graph.replace(
            adjacency={**graph.adjacency, SIMILAR: masked, UNMASKED: similar}, content=content
        )

    def inference_graph(self, backbone: Backbone, graph: Graph) -> Graph:
        """The graph with its item graph weighted by keep probabilities."""
        masked = mask_item_graph(*self._keep(backbone, graph))
        return graph.replace(adjacency={**graph.adjacency, SIMILAR: masked})

    def terms(
        self,
        backbone: Backbone,
        graph: Graph,
        stages: Stages,
        batch: Triplets,
        clean: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """Dependence between the item vectors on the masked and on the full graph."""
        if self.weight == 0:
            return {}
        masked = backbone.vectors(stages)[1]
        full = backbone.item_vectors_on(
            graph.adjacency[UNMASKED], stages, graph, self.computed_rows(batch)
        )
        rows = batch.item_rows
        value = self.hsic(masked.index_select(0, rows), full.index_select(0, rows))
        return {"hsic": self.weight * value}
