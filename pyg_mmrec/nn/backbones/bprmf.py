"""Matrix factorisation with Bayesian personalised ranking."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pyg_mmrec.argument_checks import check_positive, check_weight
from pyg_mmrec.data import Graph
from pyg_mmrec.nn.backbones.backbone import Backbone
from pyg_mmrec.nn.backbones.stages import EVERY_ROW, Rows, Stages, Triplets, add_delta
from pyg_mmrec.nn.losses import bpr_loss, emb_loss, triplet_scores


class BPRMF(Backbone):
    r"""Matrix factorisation trained with BPR (`"BPR: Bayesian Personalized Ranking from Implicit
    Feedback" <https://arxiv.org/abs/1205.2618>`_, UAI 2009), on IDs alone.

    .. math::
        s_{ui} = \mathbf{P}_u^\top \mathbf{Q}_i, \qquad
        \mathcal{L} = \mathrm{BPR} + \lambda \, \mathrm{EmbLoss}(P_u, Q_i, Q_j)

    The hidden sites are the embeddings, ``user/embedding`` and ``item/embedding``.

    Args:
        num_users (int): Number of users.
        num_items (int): Number of items.
        embedding_dim (int, optional): Size of the embeddings. (default: 64)
        reg_weight (float, optional): Weight :math:`\lambda` of the rows' norms, as in the field's
            toolboxes; the paper squares them. (default: 1e-2)

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(
        self,
        num_users: int,
        num_items: int,
        embedding_dim: int = 64,
        reg_weight: float = 1e-2,
    ) -> None:
        super().__init__(num_users, num_items)
        check_positive("embedding_dim", embedding_dim)
        check_weight("reg_weight", reg_weight)
        self.reg_weight = reg_weight
        self.user_embedding = nn.Embedding(num_users, embedding_dim)
        self.item_embedding = nn.Embedding(num_items, embedding_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the embeddings, Xavier normal."""
        nn.init.xavier_normal_(self.user_embedding.weight)
        nn.init.xavier_normal_(self.item_embedding.weight)

    @property
    def sites(self) -> dict[str, int]:
        """The embeddings."""
        channels = self.user_embedding.embedding_dim
        return {"user/embedding": channels, "item/embedding": channels}

    @property
    def rowwise(self) -> bool:
        """True, as nothing is propagated."""
        return True

    def fuse(
        self, modality: dict[str, Tensor], graph: Graph, rows: Rows = EVERY_ROW
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Takes the embeddings as they are."""
        tables = {"user": self.user_embedding.weight, "item": self.item_embedding.weight}
        return {f"{key}/embedding": rows.at(key, table) for key, table in tables.items()}, {}

    def encode(
        self,
        hidden: dict[str, Tensor],
        context: dict[str, Any],
        graph: Graph,
        delta: dict[str, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Takes them as the final vectors."""
        reached = {site: add_delta(hidden[site], delta, site) for site in self.sites}
        output = {"user": reached["user/embedding"], "item": reached["item/embedding"]}
        return reached, output, dict(output)

    def loss(self, stages: Stages, batch: Triplets) -> dict[str, Tensor]:
        """BPR and norm penalty."""
        user = batch.at("user", stages.output["user"])
        item = batch.at("item", stages.output["item"])
        terms = {"bpr": bpr_loss(*triplet_scores(user, item), 1e-10)}
        if self.reg_weight > 0:
            terms["regularization"] = self.reg_weight * emb_loss(user, *item.chunk(2))
        return terms
