"""Your own PyTorch Geometric model as a backbone: checked, then trained with and without DVIB.

Run ``python examples/custom_backbone.py``. It needs no data: 120 users, 90 items and their content
are made up, so few that a difference between the two results may be chance.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch_geometric.nn import SAGEConv

from pyg_mmrec.data import Graph, PlantedDataset
from pyg_mmrec.data.graph import INTERACTED_BY, INTERACTS
from pyg_mmrec.nn.backbones import EVERY_ROW, ContentBackbone, Rows, Stages, Triplets
from pyg_mmrec.nn.backbones.stages import add_delta
from pyg_mmrec.nn.losses import bpr_loss, triplet_scores
from pyg_mmrec.nn.objectives import DVIBa, Objective
from pyg_mmrec.testing import check_backbone
from pyg_mmrec.training import Trainer, TrainingOptions


class ContentSAGE(ContentBackbone):
    """One GraphSAGE layer between users and items, which carry ID and projected content.

    ``from_data(data)`` reads the sizes and feature widths off the data; other arguments of the
    constructor are options. Every tensor in a stage is named for its rows, ``user`` or ``item``.
    """

    def __init__(
        self,
        num_users: int,
        num_items: int,
        in_channels: dict[str, int],
        embedding_dim: int = 32,
        modalities: list[str] | None = None,
    ) -> None:
        super().__init__(num_users, num_items, in_channels, modalities)
        self.user_embedding = nn.Embedding(num_users, embedding_dim)
        self.item_embedding = nn.Embedding(num_items, embedding_dim)
        self.projection = nn.ModuleDict(
            {name: nn.Linear(size, embedding_dim) for name, size in self.in_channels.items()}
        )
        self.to_item = SAGEConv(embedding_dim, embedding_dim)
        self.to_user = SAGEConv(embedding_dim, embedding_dim)
        nn.init.normal_(self.user_embedding.weight, std=0.1)
        nn.init.normal_(self.item_embedding.weight, std=0.1)

    @property
    def sites(self) -> dict[str, int]:
        """Hidden layers that a method may perturb, and their widths."""
        return {"item/content": self.item_embedding.embedding_dim}

    def content(self, graph: Graph, rows: Rows = EVERY_ROW) -> dict[str, Tensor]:
        """Stage 1a: each modality on its own. ``project`` returns it, and methods may ask for it
        (of some rows; here gathered at last).
        """
        return {
            name: rows.at("item", self.masked(linear(self.raw_features(name, graph)), name, graph))
            for name, linear in self.projection.items()
        }

    def fuse(
        self, modality: dict[str, Tensor], graph: Graph
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Stage 1b: the hidden layer, and beside it what no method perturbs."""
        content = torch.stack(list(modality.values())).mean(0)
        context = {
            "user/embedding": self.user_embedding.weight,
            "item/embedding": self.item_embedding.weight,
        }
        return {"item/content": content}, context

    def encode(
        self,
        hidden: dict[str, Tensor],
        context: dict[str, Tensor],
        graph: Graph,
        delta: dict[str, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Stage 2: final vectors, from the arguments alone. A method may run it again, noisy."""
        content = add_delta(hidden["item/content"], delta, "item/content")
        user, item = context["user/embedding"], context["item/embedding"] + content
        output = {
            "user": user + self.to_user((item, user), graph.adjacency[INTERACTED_BY].edge_index),
            "item": item + self.to_item((user, item), graph.adjacency[INTERACTS].edge_index),
        }
        # Also returned: the site as it was reached, and what distillation compares.
        return {"item/content": content}, output, dict(output)

    def loss(self, stages: Stages, batch: Triplets) -> dict[str, Tensor]:
        """Stage 3: named terms, from the batch's rows of the output."""
        user = batch.at("user", stages.output["user"])
        item = batch.at("item", stages.output["item"])  # positive, then negative
        return {"bpr": bpr_loss(*triplet_scores(user, item))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=40, help="most epochs to train")
    arguments = parser.parse_args()

    data = PlantedDataset("tiny")[0]
    backbone = ContentSAGE.from_data(data)
    check_backbone(backbone, backbone.graph(data))
    print(f"{type(backbone).__name__} fulfils the contract of a backbone")

    options = TrainingOptions(batch_size=256, epochs=arguments.epochs, learning_rate=5e-3)
    for name, methods in (("plain", []), ("with DVIB", [DVIBa(distillation_weight=0.1)])):
        torch.manual_seed(0)
        objective = Objective(ContentSAGE.from_data(data), *methods)
        trainer = Trainer(objective, data, options, progress=False)
        trainer.fit()
        print(f"{name:10} Recall@20 on test: {trainer.evaluate('test')['recall@20']:.4f}")


if __name__ == "__main__":
    main()
