"""VBPR."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pyg_mmrec.argument_checks import check_choice, check_positive, check_weight
from pyg_mmrec.data import Graph
from pyg_mmrec.nn.backbones.content_backbone import ContentBackbone
from pyg_mmrec.nn.backbones.stages import EVERY_ROW, Rows, Stages, Triplets, add_delta
from pyg_mmrec.nn.losses import bpr_loss, emb_loss, triplet_scores


class VBPR(ContentBackbone):
    r"""VBPR (`He & McAuley, AAAI 2016 <https://arxiv.org/abs/1510.01784>`_): matrix factorisation
    with projected content, as the field's toolboxes run it on several modalities.

    .. math::
        \mathbf{y}_i = [\mathbf{Q}_i \Vert \mathbf{W} \mathbf{x}_i + \mathbf{b}], \qquad
        s_{ui} = \langle \mathbf{P}_u, \mathbf{y}_i \rangle, \qquad
        \mathcal{L} = \mathrm{BPR} + \lambda \, \mathrm{EmbLoss}(\mathbf{P}_u, \mathbf{y}_i,
        \mathbf{y}_j)

    :math:`\mathbf{x}_i` concatenates the modalities, text before image. The hidden site is
    ``item/content``, :math:`\mathbf{W} \mathbf{x} + \mathbf{b}`. The paper's bias terms are
    left out.

    Args:
        num_users (int): Number of users.
        num_items (int): Number of items.
        in_channels (dict[str, int]): Feature size of each modality.
        embedding_dim (int, optional): Size of ID and content part each; user and item vectors
            are twice as wide. (default: 64)
        reg_weight (float, optional): Weight :math:`\lambda` of the norms. (default: 1e-2)
        site (str, optional): :obj:`"content"`, or :obj:`"item"` to have the whole item vector
            :math:`[\mathbf{Q} \Vert \mathbf{W} \mathbf{x} + \mathbf{b}]` as hidden site.
            (default: :obj:`"content"`)
        modalities (list[str], optional): Modalities to use, in order.
            (default: all, as image, text, then others by name)
        train_features (bool, optional): Whether raw features are trained along.
            (default: :obj:`False`)
        features (dict[str, torch.Tensor], optional): Raw features to start from, if trained.

    Raises:
        ValueError: If a number is out of range or features are missing.
    """

    has_user_content = True
    projection: nn.Linear  # type: ignore[assignment]  # one for all modalities

    def __init__(
        self,
        num_users: int,
        num_items: int,
        in_channels: Mapping[str, int],
        embedding_dim: int = 64,
        reg_weight: float = 1e-2,
        site: str = "content",
        modalities: Sequence[str] | None = None,
        train_features: bool = False,
        features: Mapping[str, Tensor] | None = None,
    ) -> None:
        check_positive("embedding_dim", embedding_dim)
        super().__init__(num_users, num_items, in_channels, modalities, train_features, features)
        check_weight("reg_weight", reg_weight)
        check_choice("site", site, ("content", "item"))
        self.require_features()
        self.reg_weight = reg_weight
        self.site = site
        self.user_embedding = nn.Embedding(num_users, 2 * embedding_dim)
        self.item_embedding = nn.Embedding(num_items, embedding_dim)
        # Concatenated as [second, first, others]: text before image.
        self.fused = [*self.modalities[1:2], self.modalities[0], *self.modalities[2:]]
        self.projection = nn.Linear(sum(self.in_channels.values()), embedding_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the embeddings, Xavier uniform, and the projection, Xavier normal with bias 0."""
        nn.init.xavier_uniform_(self.user_embedding.weight)
        nn.init.xavier_uniform_(self.item_embedding.weight)
        nn.init.xavier_normal_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)

    @property
    def sites(self) -> dict[str, int]:
        """The projected content, or the whole item vector."""
        channels = self.projection.out_features
        if self.site == "content":
            return {"item/content": channels}
        return {"item/vector": 2 * channels}

    @property
    def rowwise(self) -> bool:
        """True, as nothing is propagated."""
        return True

    @property
    def content_channels(self) -> dict[str, int]:
        """Size of the projection, which the modalities share."""
        return dict.fromkeys(self.modalities, self.projection.out_features)

    def content(self, graph: Graph, rows: Rows = EVERY_ROW) -> dict[str, Tensor]:
        """Projects each modality with its columns of :math:`W`."""
        columns = self.projection.weight.split([self.in_channels[m] for m in self.fused], dim=1)
        projected = {
            name: rows.map(
                "item", partial(nn.functional.linear, weight=weight), self.raw_features(name, graph)
            )
            for name, weight in zip(self.fused, columns, strict=True)
        }
        return {name: self.masked(projected[name], name, graph, rows) for name in self.modalities}

    def fuse(
        self, modality: dict[str, Tensor], graph: Graph, rows: Rows = EVERY_ROW
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Adds up the projections."""
        content = self._sum(modality)
        context = {"user/embedding": rows.at("user", self.user_embedding.weight)}
        embedding = rows.at("item", self.item_embedding.weight)
        if self.site == "item":
            return {"item/vector": torch.cat([embedding, content], 1)}, context
        context["item/embedding"] = embedding
        return {"item/content": content}, context

    def _sum(self, modality: dict[str, Tensor]) -> Tensor:
        return torch.stack(list(modality.values())).sum(0) + self.projection.bias

    def content_vectors(self, graph: Graph, rows: Rows = EVERY_ROW) -> tuple[Tensor, Tensor]:
        """The users' halves that meet the items' content, and that content."""
        user = rows.at("user", self.user_embedding.weight[:, self.projection.out_features :])
        return user, self._sum(self.content(graph, rows))

    def user_content_parameters(self) -> Iterator[nn.Parameter]:
        """The users' embeddings, of which :meth:`content_vectors` reads one half."""
        return self.user_embedding.parameters()

    def encode(
        self,
        hidden: dict[str, Tensor],
        context: dict[str, Any],
        graph: Graph,
        delta: dict[str, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Joins ID and content part."""
        (site,) = self.sites
        reached = add_delta(hidden[site], delta, site)
        item = reached
        if self.site == "content":
            item = torch.cat([context["item/embedding"], reached], 1)
        output = {"user": context["user/embedding"], "item": item}
        return {site: reached}, output, {"item": item}

    def loss(self, stages: Stages, batch: Triplets) -> dict[str, Tensor]:
        """BPR and norm penalty on the concatenated vectors."""
        user = batch.at("user", stages.output["user"])
        item = batch.at("item", stages.output["item"])
        terms = {"bpr": bpr_loss(*triplet_scores(user, item), 1e-10)}
        if self.reg_weight > 0:
            terms["regularization"] = self.reg_weight * emb_loss(user, *item.chunk(2))
        return terms
