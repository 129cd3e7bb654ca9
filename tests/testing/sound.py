"""Sound backbones to make faulty ones of."""

import pytest
import torch
from torch import nn

from pyg_mmrec.data import PlantedDataset
from pyg_mmrec.nn.backbones import EVERY_ROW, Backbone, ContentBackbone
from pyg_mmrec.nn.backbones.stages import add_delta
from pyg_mmrec.nn.losses import bpr_loss
from pyg_mmrec.testing import check_backbone

DATA = PlantedDataset("tiny")[0]


class Sound(Backbone):
    """Two layers over item IDs, each a site, with dropout beside them."""

    def __init__(self, num_users, num_items):
        super().__init__(num_users, num_items)
        self.user_embedding = nn.Embedding(num_users, 4)
        self.item_embedding = nn.Embedding(num_items, 4)
        self.linear = nn.Linear(4, 4)

    @property
    def sites(self):
        return {"item/first": 4, "item/second": 4}

    def fuse(self, modality, graph):
        weight = self.user_embedding.weight
        dropped = nn.functional.dropout(weight, 0.5, self.training)
        context = {"user/embedding": weight, "user/dropped": dropped}
        return {"item/first": self.item_embedding.weight}, context

    def encode(self, hidden, context, graph, delta=None):
        first = add_delta(hidden["item/first"], delta, "item/first")
        second = add_delta(self.linear(first).tanh(), delta, "item/second")
        output = {"user": context["user/embedding"], "item": first + second}
        output["user/dropped"] = context["user/dropped"]
        return {"item/first": first, "item/second": second}, output, {"item": output["item"]}

    def loss(self, stages, batch):
        user = batch.at("user", stages.output["user/dropped"])
        positive, negative = batch.at("item", stages.output["item"]).chunk(2)
        return {"bpr": bpr_loss((user * positive).sum(-1), (user * negative).sum(-1))}


class Rowwise(Sound):
    rowwise = True

    def fuse(self, modality, graph, rows=EVERY_ROW):
        hidden, context = super().fuse(modality, graph)
        hidden, context = (
            {key: rows.at(key, x) for key, x in part.items()} for part in (hidden, context)
        )
        return hidden, context


class Regularized(Sound):
    """Dropout of the hidden layer and batch normalization after it."""

    def __init__(self, num_users, num_items):
        super().__init__(num_users, num_items)
        self.dropout = nn.Dropout()
        self.linear = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))

    def fuse(self, modality, graph):
        hidden, context = super().fuse(modality, graph)
        return {site: self.dropout(x) for site, x in hidden.items()}, context


class Content(ContentBackbone, Sound):
    """Content beside the IDs, of layers in a row that drop some of it."""

    def __init__(self, num_users, num_items, in_channels):
        super().__init__(num_users, num_items, in_channels)
        self.user_embedding = nn.Embedding(num_users, 4)
        self.item_embedding = nn.Embedding(num_items, 4)
        self.linear = nn.Linear(4, 4)
        self.projection = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Linear(size, 4), nn.BatchNorm1d(4), nn.Dropout())
                for name, size in in_channels.items()
            }
        )

    def fuse(self, modality, graph):
        hidden, context = super().fuse(modality, graph)
        content = torch.stack(list(modality.values())).sum(0)
        return {site: x + content for site, x in hidden.items()}, context


class Lazy(Sound):
    """The first call finds out the layer's size; the context holds something else, too."""

    def __init__(self, num_users, num_items):
        super().__init__(num_users, num_items)
        self.linear = nn.LazyLinear(4)

    def fuse(self, modality, graph):
        hidden, context = super().fuse(modality, graph)
        return hidden, {**context, "activation": "tanh"}


def refused(cls, message, **options):
    torch.manual_seed(0)
    backbone = cls.from_data(DATA)
    with pytest.raises(AssertionError, match=message) as error:
        check_backbone(backbone, backbone.graph(DATA), **options)
    assert str(error.value).startswith(f"{cls.__name__}: ")
