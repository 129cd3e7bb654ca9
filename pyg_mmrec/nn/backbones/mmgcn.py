"""MMGCN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pyg_mmrec.argument_checks import check_positive, check_weight
from pyg_mmrec.data import Graph
from pyg_mmrec.data.graph import INTERACTED_BY, INTERACTS
from pyg_mmrec.nn.backbones.content_backbone import (
    ContentBackbone,
    draw_as_one_table,
    draw_linear_layers,
)
from pyg_mmrec.nn.backbones.stages import EVERY_ROW, Rows, Stages, Triplets, add_delta
from pyg_mmrec.nn.conv import MMGCNConv
from pyg_mmrec.nn.functional import normalize_rows
from pyg_mmrec.nn.losses import bpr_loss, triplet_scores


class MMGCN(ContentBackbone):
    r"""MMGCN (`Wei et al., ACM MM 2019 <https://doi.org/10.1145/3343031.3351034>`_): a graph
    convolution of its own in each modality, tied together by the IDs.

    .. math::
        \mathbf{X}^m_0 = \mathrm{rownorm}([\mathbf{T}^m; \mathbf{F}^m]), \qquad
        \mathbf{X}^m_l = \mathrm{MMGCNConv}^m_l(\mathbf{X}^m_{l-1}, [\mathbf{P}; \mathbf{Q}]),
        \; l = 1, 2, 3, \qquad
        \mathbf{y} = \frac{1}{M} \textstyle\sum_m \mathbf{X}^m_3

    with the users' preferences :math:`\mathbf{T}^m`, the items' features :math:`\mathbf{F}^m`,
    projected linearly or raw, and the layer :class:`~pyg_mmrec.nn.conv.MMGCNConv`, whose weights
    serve both directions between users and items.

    .. math::
        \mathcal{L} = \mathrm{BPR} + \lambda \big( \overline{\mathbf{P}_u^2} +
        \overline{\mathbf{Q}_{i,j}^2} + \overline{(\mathbf{T}^1)^2} \big)

    with means over the batch's rows, of :math:`\mathbf{T}^1` over all users. The first modality
    plays image, so it is the one that is projected by default and whose :math:`\mathbf{T}^1` is
    penalised, except where ``text`` is the only one: then none is. Hidden sites are ``user/{m}``
    and ``item/{m}`` of each modality, :math:`\mathbf{T}^m` and :math:`\mathbf{F}^m` before their
    rows are normalised.

    Args:
        num_users (int): Number of users.
        num_items (int): Number of items.
        in_channels (dict[str, int]): Feature size of each modality.
        embedding_dim (int, optional): Size of the embeddings and of every layer's result.
            (default: 64)
        concat (bool, optional): Whether layers concatenate what comes from the neighbours and from
            the node itself; else they add it up. (default: :obj:`True`)
        projected (dict[str, int], optional): Width of :math:`\mathbf{F}^m` for the modalities that
            are projected; of the others the raw features enter the graph convolution.
            (default: 256 for the modality that plays image)
        train_id_embedding (bool, optional): Whether IDs are trained, or stay as they were drawn;
            the preset ``mmrec`` does not train them. (default: :obj:`True`)
        train_preference (bool, optional): The same of :math:`\mathbf{T}^m`. (default: :obj:`True`)
        reg_weight (float, optional): Weight :math:`\lambda` of the squares. (default: 1e-3)
        modalities (list[str], optional): Modalities to use, in order.
            (default: all, as image, text, then others by name)
        train_features (bool, optional): Whether raw features are trained along.
            (default: :obj:`False`)
        features (dict[str, torch.Tensor], optional): Raw features to start from, if trained.

    Raises:
        ValueError: If an option is out of range or features are missing.

    .. note::
        The paper adds up the modalities; their mean ranks alike. An item that lacks a modality has
        features 0 and no neighbours there. Weights of the interactions are not read.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "mmrec": {"train_id_embedding": False, "train_preference": False},
    }

    def __init__(
        self,
        num_users: int,
        num_items: int,
        in_channels: Mapping[str, int],
        embedding_dim: int = 64,
        concat: bool = True,
        projected: Mapping[str, int] | None = None,
        train_id_embedding: bool = True,
        train_preference: bool = True,
        reg_weight: float = 1e-3,
        modalities: Sequence[str] | None = None,
        train_features: bool = False,
        features: Mapping[str, Tensor] | None = None,
    ) -> None:
        check_positive("embedding_dim", embedding_dim)
        super().__init__(num_users, num_items, in_channels, modalities, train_features, features)
        check_weight("reg_weight", reg_weight)
        self.require_features()
        self.image = None if self.modalities == ["text"] else self.modalities[0]
        if projected is None:
            projected = {} if self.image is None else {self.image: 256}
        if not isinstance(projected, Mapping):
            raise ValueError(f"'projected' needs widths by modality (got {projected!r})")
        for name, width in projected.items():
            check_positive(f"projected[{name!r}]", width)
            if name not in self.modalities:
                raise ValueError(
                    f"'projected' names '{name}', but the modalities are {self.modalities}"
                )
        self.projected = dict(projected)
        self.reg_weight = reg_weight
        self.user_embedding = nn.Embedding(num_users, embedding_dim)
        self.item_embedding = nn.Embedding(num_items, embedding_dim)
        widths = {**self.in_channels, **self.projected}
        self.preference = nn.ParameterDict(
            {name: torch.empty(num_users, width) for name, width in widths.items()}
        )
        self.projection = nn.ModuleDict(
            {
                name: nn.Linear(self.in_channels[name], self.projected[name])
                for name in self.modalities
                if name in self.projected
            }
        )
        self.convs = nn.ModuleDict(
            {
                name: nn.ModuleList(
                    MMGCNConv(channels, embedding_dim, concat)
                    for channels in (width, embedding_dim, embedding_dim)
                )
                for name, width in widths.items()
            }
        )
        self.user_embedding.requires_grad_(train_id_embedding)
        self.item_embedding.requires_grad_(train_id_embedding)
        self.preference.requires_grad_(train_preference)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws all tables, projections and layers, Xavier normal, and biases as
        :class:`torch.nn.Linear` does. Users and items count as one table of IDs.
        """
        draw_as_one_table(self.user_embedding.weight, self.item_embedding.weight)
        for table in self.preference.values():
            nn.init.xavier_normal_(table)
        draw_linear_layers(self.projection, nn.init.xavier_normal_, zero_bias=False)
        for module in self.convs.modules():
            if isinstance(module, MMGCNConv):
                module.reset_parameters()

    @property
    def sites(self) -> dict[str, int]:
        """Preferences and features of each modality."""
        return {
            f"{kind}/{name}": self.preference[name].size(1)
            for name in self.modalities
            for kind in ("user", "item")
        }

    def content(self, graph: Graph, rows: Rows = EVERY_ROW) -> dict[str, Tensor]:
        r"""Makes the items' :math:`\mathbf{F}^m`: projected, or the raw features as they are."""
        modality = {}
        for name in self.modalities:
            f = self.raw_features(name, graph)
            if name in self.projection:
                f = rows.map("item", self.projection[name], f)
            else:
                f = rows.at("item", f)
            # Raw features may lie column by column, which every later product would copy.
            modality[name] = self.masked(f, name, graph, rows).contiguous()
        return modality

    def fuse(
        self, modality: dict[str, Tensor], graph: Graph
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Puts the preferences beside the features; the modalities meet at the very end."""
        hidden, context = {}, {}
        for name, f in modality.items():
            hidden[f"user/{name}"] = self.preference[name]
            hidden[f"item/{name}"] = f
        if self.image is not None and self.reg_weight > 0:
            context["preference"] = self.preference[self.image].square().mean()
        return hidden, context

    def encode(
        self,
        hidden: dict[str, Tensor],
        context: dict[str, Any],
        graph: Graph,
        delta: dict[str, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Runs the graph convolutions of every modality and averages the modalities."""
        to_item, to_user = graph.adjacency[INTERACTS], graph.adjacency[INTERACTED_BY]
        user_id, item_id = self.user_embedding.weight, self.item_embedding.weight
        reached = {site: add_delta(hidden[site], delta, site) for site in self.sites}
        users, items = [], []
        for name in self.modalities:
            user = normalize_rows(reached[f"user/{name}"])
            item = normalize_rows(reached[f"item/{name}"])
            has = has_reverse = None
            if name in graph.mask:
                has = graph.mask[name].index_select(0, to_user.col)
                has_reverse = has.index_select(0, to_item.perm)
            for conv in self.convs[name].children():
                user, item = (
                    conv((item, user), to_user, user_id, has),
                    conv((user, item), to_item, item_id, has_reverse),
                )
            users.append(user)
            items.append(item)
        vectors = {"user": torch.stack(users).mean(0), "item": torch.stack(items).mean(0)}
        return reached, {**vectors, "user/id": user_id, "item/id": item_id, **context}, vectors

    def perturbed_loss(self, stages: Stages, batch: Triplets) -> dict[str, Tensor]:
        """BPR on the final vectors."""
        user = batch.at("user", stages.output["user"])
        item = batch.at("item", stages.output["item"])
        return {"bpr": bpr_loss(*triplet_scores(user, item))}

    def loss(self, stages: Stages, batch: Triplets) -> dict[str, Tensor]:
        """BPR on the final vectors, squares of the IDs and of the first preferences."""
        terms = self.perturbed_loss(stages, batch)
        if self.reg_weight > 0:
            squares = [
                batch.at(key, stages.output[key]).square().mean() for key in ("user/id", "item/id")
            ]
            if "preference" in stages.output:
                squares.append(stages.output["preference"])
            terms["regularization"] = self.reg_weight * torch.stack(squares).sum()
        return terms
