"""SelfCF."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyg_mmrec.argument_checks import check_rate
from pyg_mmrec.data import Adjacency, Graph
from pyg_mmrec.data.graph import INTERACTED_BY, INTERACTS
from pyg_mmrec.nn.backbones.lightgcn import LightGCN
from pyg_mmrec.nn.backbones.stages import EVERY_ROW, Rows, Stages, Triplets
from pyg_mmrec.nn.functional import normalize_rows, unit_dot
from pyg_mmrec.nn.losses import l2_loss


class SelfCF(LightGCN):
    r"""SelfCF with embedding dropout (`"SelfCF: A Simple Framework for Self-supervised
    Collaborative Filtering" <https://arxiv.org/abs/2107.03019>`_, TORS 2023), on IDs alone and
    without negatives.

    .. math::
        \mathcal{L} = -\frac{1}{2B} \sum_{(u,i)} [\cos(h(\mathbf{e}_u), \mathbf{t}_i) +
        \cos(h(\mathbf{e}_i), \mathbf{t}_u)] + \lambda \, \mathrm{L2Loss}(e_u, e_i), \qquad
        s_{ui} = h(\mathbf{e}_u)^\top \mathbf{e}_i + \mathbf{e}_u^\top h(\mathbf{e}_i)

    :math:`\mathbf{e}` are LightGCN's vectors, :math:`\mathbf{t} = \mathrm{dropout}(\mathbf{e})`
    without gradient, :math:`h` is linear. In training, every step drops entries of the adjacency,
    each direction for itself, at a rate that it draws anew, and rescales the kept ones. The hidden
    sites ``user/embedding`` and ``item/embedding`` are the layer-0 embeddings.

    Args:
        num_users (int): Number of users.
        num_items (int): Number of items.
        embedding_dim (int, optional): Size of the embeddings. (default: 64)
        num_layers (int, optional): Number of propagation layers. (default: 2)
        dropout (float, optional): Rate of the targets' dropout in [0, 1). (default: 0.1)
        edge_dropout (float or str, optional): Rate in [0, 1) of the adjacency's dropout;
            :obj:`"uniform"` draws it from there in every step, :obj:`None` drops nothing.
            (default: :obj:`"uniform"`)
        reg_weight (float, optional): Weight :math:`\lambda` of the final rows' squares.
            (default: 1e-3)

    Raises:
        ValueError: If a number is out of range.
    """

    gathers_output = True

    def __init__(
        self,
        num_users: int,
        num_items: int,
        embedding_dim: int = 64,
        num_layers: int = 2,
        dropout: float = 0.1,
        edge_dropout: float | str | None = "uniform",
        reg_weight: float = 1e-3,
    ) -> None:
        super().__init__(num_users, num_items, embedding_dim, num_layers, reg_weight)
        check_rate("dropout", dropout)
        if isinstance(edge_dropout, str) and edge_dropout != "uniform":
            raise ValueError(
                f"'edge_dropout' needs to lie in [0, 1), or to be 'uniform' or None "
                f"(got {edge_dropout!r})"
            )
        if edge_dropout is not None and not isinstance(edge_dropout, str):
            check_rate("edge_dropout", edge_dropout)
        self.dropout = dropout
        self.edge_dropout = edge_dropout
        self.predictor = nn.Linear(embedding_dim, embedding_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the embeddings, Xavier uniform, and the predictor as :class:`torch.nn.Linear` does:
        larger starts of it, such as Xavier's, change what is learned.
        """
        super().reset_parameters()
        if hasattr(self, "predictor"):  # not yet when LightGCN's constructor calls
            self.predictor.reset_parameters()

    @property
    def graph_sampling(self) -> str:  # type: ignore[override]
        """Every step, if entries are dropped."""
        return "step" if self.edge_dropout else "never"

    def sample_graph(
        self, graph: Graph, epoch: int, generator: torch.Generator | None = None
    ) -> Graph:
        """Drops entries of the adjacency, in both directions independently."""
        if not self.edge_dropout:
            return graph
        full = graph.weighted_adjacency(INTERACTS, "NormalizeInteractions")
        rate: float | Tensor
        if self.edge_dropout == "uniform":
            rate = torch.rand((), device=full.weight.device, generator=generator)
        else:
            rate = float(self.edge_dropout)

        def drop(adjacency: Adjacency) -> Adjacency:
            uniform = torch.empty_like(adjacency.weight).uniform_(generator=generator)
            # Dropped entries stay as zeros: cutting them out costs more than multiplying them.
            return adjacency.with_weight(adjacency.weight * (uniform >= rate) / (1 - rate))

        dropped = {
            edge_type: drop(graph.adjacency[edge_type]) for edge_type in (INTERACTS, INTERACTED_BY)
        }
        return graph.replace(adjacency={**graph.adjacency, **dropped})

    def fuse(
        self, modality: dict[str, Tensor], graph: Graph, rows: Rows = EVERY_ROW
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Takes the embeddings as they are, and draws the targets' dropout."""
        hidden, context = super().fuse(modality, graph, rows)
        if self.training and self.dropout > 0:
            for key in ("user", "item"):
                like = rows.at(key, hidden[f"{key}/embedding"])
                uniform = torch.rand_like(like)
                context[f"{key}/kept"] = uniform.lt_(1 - self.dropout)  # fast on a CPU
        return hidden, context

    def encode(
        self,
        hidden: dict[str, Tensor],
        context: dict[str, Any],
        graph: Graph,
        delta: dict[str, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Propagates the embeddings over the interactions."""
        reached, output, compared = super().encode(hidden, context, graph, delta)
        kept = {key: x for key, x in context.items() if key.endswith("/kept")}
        return reached, {**compared, **kept}, compared

    def perturbed_loss(self, stages: Stages, batch: Triplets) -> dict[str, Tensor]:
        """All: the penalty is on the final vectors."""
        return self.loss(stages, batch)

    def loss(self, stages: Stages, batch: Triplets) -> dict[str, Tensor]:
        """Cosine distance of each side's prediction to the other's target, and a norm penalty."""
        online = {
            "user": batch.at("user", stages.output["user"]),
            "item": batch.at("item", stages.output["item"]).chunk(2)[0],
        }
        target = {key: x.detach() for key, x in online.items()}
        for key in online:
            if f"{key}/kept" in stages.output:
                kept = batch.at(key, stages.output[f"{key}/kept"])[: batch.user.numel()]
                target[key] = target[key] * kept  # only its direction is read

        def distance(one: str, other: str) -> Tensor:
            return -unit_dot(self.predictor(online[one]), normalize_rows(target[other])).mean()

        terms = {"alignment": 0.5 * (distance("user", "item") + distance("item", "user"))}
        if self.reg_weight > 0:
            terms["regularization"] = self.reg_weight * l2_loss(*online.values())
        return terms

    def vectors(self, stages: Stages) -> tuple[Tensor, Tensor]:
        """Users ``[h(e) || e]`` and items ``[e || h(e)]``."""
        user, item = stages.output["user"], stages.output["item"]
        return (
            torch.cat([self.predictor(user), user], 1),
            torch.cat([item, self.predictor(item)], 1),
        )
