"""GRCN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyg_mmrec.argument_checks import check_choice, check_positive, check_weight
from pyg_mmrec.data import Graph
from pyg_mmrec.data.graph import INTERACTED_BY, INTERACTS
from pyg_mmrec.nn.backbones.content_backbone import (
    ContentBackbone,
    draw_as_one_table,
    draw_linear_layers,
)
from pyg_mmrec.nn.backbones.stages import EVERY_ROW, Rows, Stages, Triplets, add_delta
from pyg_mmrec.nn.conv import ConfidenceConv, RoutingAttentionConv
from pyg_mmrec.nn.functional import edge_softmax, normalize_rows, sddmm, spmm
from pyg_mmrec.nn.losses import bpr_loss, triplet_scores


class GRCN(ContentBackbone):
    r"""GRCN (`Wei et al., ACM MM 2020 <https://arxiv.org/abs/2111.02036>`_): interactions count as
    far as the item's content fits the user's preferences.

    In each modality, preferences are routed by attention over the user's items, :math:`R` times,
    then users and items attend to each other once:

    .. math::
        \mathbf{f} = \mathrm{rownorm}(\mathrm{LeakyReLU}(\mathbf{W}_m \mathbf{x}^m + \mathbf{b}_m)),
        \qquad \mathbf{p} \leftarrow \mathrm{rownorm} \big( \mathbf{p} + \textstyle\sum_{i}
        \alpha_{iu} \mathbf{f}_i \big), \qquad
        \mathbf{r}^m_v = \mathbf{h}_v + \textstyle\sum_{w} \alpha^m_{wv} \mathbf{h}_w

    where :math:`\mathbf{p}` starts from the rows of the trained :math:`\mathbf{T}^m` at length one,
    :math:`\mathbf{h} = [\mathbf{p}; \mathbf{f}]`, and :math:`\alpha_{wv}` is the softmax of
    :math:`\mathbf{h}_v^{\top} \mathbf{h}_w` over the neighbours :math:`w` of :math:`v`. The last
    attention and the sender's confidence :math:`c` weigh the edges that propagate the IDs:

    .. math::
        w_{wv} = \mathrm{ReLU}(\max_m \alpha^m_{wv} c_{wm}), \qquad
        \mathbf{e} = (\mathbf{I} + \mathbf{W} + \mathbf{W}^2) \, \mathrm{rownorm}([\mathbf{P};
        \mathbf{Q}]), \qquad
        \mathbf{y} = [\mathbf{e} \Vert \mathbf{r}^1 \Vert \mathbf{r}^2 \Vert \dots]

    .. math::
        \mathcal{L} = \mathrm{BPR} + \lambda \big( \overline{\mathbf{P}_u^2} +
        \overline{\mathbf{Q}_{i,j}^2} + \overline{(\mathbf{T}^1)^2} + \textstyle\sum_m
        \overline{(\mathbf{T}^m_u)^2} \big)

    with means over the batch's rows, of :math:`\mathbf{T}^1` over all users. Hidden sites are
    ``user/content`` and ``item/content``, :math:`[\mathbf{r}^1 \Vert \mathbf{r}^2 \Vert \dots]`.

    Args:
        num_users (int): Number of users.
        num_items (int): Number of items.
        in_channels (dict[str, int]): Feature size of each modality.
        embedding_dim (int, optional): Size of the ID part and of each modality's; final vectors
            are as wide as all together. (default: 64)
        num_routings (int, optional): Number of routings :math:`R`, 1 or more. (default: 3)
        routing (str, optional): :obj:`"attention"`, or :obj:`"renormalise"`, where no message
            reaches a preference before the last attention; the preset ``mmrec`` has it, as the
            published code. (default: :obj:`"attention"`)
        reg_weight (float, optional): Weight :math:`\lambda` of the squares. (default: 1e-3)
        modalities (list[str], optional): Modalities to use, in order; the whole-table term
            :math:`\overline{(\mathbf{T}^1)^2}` is the first one's, and is left out where ``text``
            is the only one. (default: all, as image, text, then others by name)
        train_features (bool, optional): Whether raw features are trained along.
            (default: :obj:`False`)
        features (dict[str, torch.Tensor], optional): Raw features to start from, if trained.

    Raises:
        ValueError: If an option is out of range or features are missing.

    .. note::
        An item that lacks a modality neither sends nor receives there. Weights of the interactions
        are not read.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "mmrec": {"routing": "renormalise"},
    }

    def __init__(
        self,
        num_users: int,
        num_items: int,
        in_channels: Mapping[str, int],
        embedding_dim: int = 64,
        num_routings: int = 3,
        routing: str = "attention",
        reg_weight: float = 1e-3,
        modalities: Sequence[str] | None = None,
        train_features: bool = False,
        features: Mapping[str, Tensor] | None = None,
    ) -> None:
        check_positive("embedding_dim", embedding_dim)
        super().__init__(num_users, num_items, in_channels, modalities, train_features, features)
        check_positive("num_routings", num_routings)
        check_weight("reg_weight", reg_weight)
        check_choice("routing", routing, ("attention", "renormalise"))
        self.require_features()
        self.num_routings = num_routings
        self.routing = routing
        self.reg_weight = reg_weight
        self.user_embedding = nn.Embedding(num_users, embedding_dim)
        self.item_embedding = nn.Embedding(num_items, embedding_dim)
        self.user_confidence = nn.Parameter(torch.empty(num_users, len(self.modalities)))
        self.item_confidence = nn.Parameter(torch.empty(num_items, len(self.modalities)))
        self.preference = nn.ParameterDict(
            {name: torch.empty(num_users, embedding_dim) for name in self.modalities}
        )
        self.projection = self.linear_projections(embedding_dim)
        self.route = RoutingAttentionConv()
        self.refine = ConfidenceConv()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws all tables and projections, Xavier normal; biases start at 0.

        Users and items count as one table of IDs and one of confidences.
        """
        draw_as_one_table(self.user_embedding.weight, self.item_embedding.weight)
        draw_as_one_table(self.user_confidence, self.item_confidence)
        for table in self.preference.values():
            nn.init.xavier_normal_(table)
        draw_linear_layers(self.projection, nn.init.xavier_normal_)

    @property
    def sites(self) -> dict[str, int]:
        """The content representations of users and items, all modalities side by side."""
        channels = len(self.modalities) * self.user_embedding.embedding_dim
        return {"user/content": channels, "item/content": channels}

    @property
    def rowwise(self) -> bool:
        """True, as the content joins the IDs after all propagation."""
        return True

    def project(self, graph: Graph, rows: Rows = EVERY_ROW) -> dict[str, Tensor]:
        r"""Projects every item to :math:`\mathbf{f}`, also if few are asked for: users attend to
        all of theirs.
        """
        return self.content(graph)

    def content(self, graph: Graph, rows: Rows = EVERY_ROW) -> dict[str, Tensor]:
        r"""Projects items to :math:`\mathbf{f}`."""

        def project(name: str, x: Tensor) -> Tensor:
            return normalize_rows(F.leaky_relu(self.projection[name](x)))

        return {
            name: self.masked(
                rows.map("item", partial(project, name), self.raw_features(name, graph)),
                name,
                graph,
                rows,
            )
            for name in self.modalities
        }

    def fuse(
        self, modality: dict[str, Tensor], graph: Graph, rows: Rows = EVERY_ROW
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Runs the routing and, on the edges that it weighs, the ID part, which is context."""
        to_item, to_user = graph.adjacency[INTERACTS], graph.adjacency[INTERACTED_BY]
        content: dict[str, list[Tensor]] = {"user": [], "item": []}
        attention: dict[str, list[Tensor]] = {"user": [], "item": []}
        for name, f in modality.items():
            user, item, user_attention, item_attention = self._attend(name, f, graph)
            content["user"].append(rows.at("user", user))
            content["item"].append(rows.at("item", item))
            attention["user"].append(user_attention)
            attention["item"].append(item_attention)
        into_user = torch.stack(attention["user"], 1), self.item_confidence
        into_item = torch.stack(attention["item"], 1), self.user_confidence
        user_start = user = normalize_rows(self.user_embedding.weight)
        item_start = item = normalize_rows(self.item_embedding.weight)
        for _ in range(2):  # e + W (e + W e) = e + W e + W^2 e
            user, item = (
                user_start + self.refine((item, user), to_user, *into_user),
                item_start + self.refine((user, item), to_item, *into_item),
            )
        context = {
            "user/id": rows.at("user", user),
            "item/id": rows.at("item", item),
            "user/embedding": rows.at("user", self.user_embedding.weight),
            "item/embedding": rows.at("item", self.item_embedding.weight),
        }
        for name in self.modalities:
            context[f"user/preference/{name}"] = rows.at("user", self.preference[name])
        if self.modalities != ["text"]:
            context["preference"] = self.preference[self.modalities[0]].square().mean()
        return {f"{kind}/content": torch.cat(x, 1) for kind, x in content.items()}, context

    def _attend(self, name: str, f: Tensor, graph: Graph) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Representations of users and items in a modality, and the attention on the edges into
        users and into items.
        """
        to_item, to_user = graph.adjacency[INTERACTS], graph.adjacency[INTERACTED_BY]
        has = has_reverse = None
        if name in graph.mask:
            has = graph.mask[name].index_select(0, to_user.col)
            has_reverse = has.index_select(0, to_item.perm)
        p = normalize_rows(self.preference[name])
        if self.routing == "attention":  # else every routing would normalise p again
            for _ in range(self.num_routings):
                p = normalize_rows(p + self.route((f, p), to_user, has))
        score = sddmm(to_user, p, f)  # serves both directions
        user_attention = edge_softmax(score, to_user.edge_index[1], self.num_users, has)
        item_attention = edge_softmax(
            score.index_select(0, to_item.perm),
            to_item.edge_index[1],
            self.num_items,
            has_reverse,
        )
        user = spmm(to_user.with_weight(user_attention), f, base=p)
        item = spmm(to_item.with_weight(item_attention), p, base=f)
        return user, item, user_attention, item_attention

    def encode(
        self,
        hidden: dict[str, Tensor],
        context: dict[str, Any],
        graph: Graph,
        delta: dict[str, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Joins ID part and content."""
        reached = {site: add_delta(hidden[site], delta, site) for site in self.sites}
        vectors = {
            kind: torch.cat([context[f"{kind}/id"], reached[f"{kind}/content"]], 1)
            for kind in ("user", "item")
        }
        output = {key: x for key, x in context.items() if not key.endswith("/id")}
        return reached, {**vectors, **output}, vectors

    def perturbed_loss(self, stages: Stages, batch: Triplets) -> dict[str, Tensor]:
        """BPR on the final vectors."""
        user = batch.at("user", stages.output["user"])
        item = batch.at("item", stages.output["item"])
        return {"bpr": bpr_loss(*triplet_scores(user, item))}

    def loss(self, stages: Stages, batch: Triplets) -> dict[str, Tensor]:
        """BPR on the final vectors, squares of the IDs and preferences."""
        terms = self.perturbed_loss(stages, batch)
        if self.reg_weight > 0:
            keys = ["user/embedding", "item/embedding"]
            keys += [f"user/preference/{name}" for name in self.modalities]
            squares = [batch.at(key, stages.output[key]).square().mean() for key in keys]
            if "preference" in stages.output:
                squares.append(stages.output["preference"])
            terms["regularization"] = self.reg_weight * torch.stack(squares).sum()
        return terms
