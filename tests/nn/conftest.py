from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from pyg_mmrec.data import PlantedDataset
from pyg_mmrec.nn.backbones import Triplets
from pyg_mmrec.training import TripletSampler

_TINY = PlantedDataset("tiny")[0]


@pytest.fixture
def tiny() -> HeteroData:
    """The smallest generated data set: 120 users, 90 items, image and text."""
    return copy.copy(_TINY)


@pytest.fixture
def sample() -> Callable[..., Triplets]:
    """Draws a batch of training triplets."""

    def draw(data: HeteroData, size: int = 64, seed: int = 0) -> Triplets:
        sampler = TripletSampler(
            data["user", "interacts", "item"].edge_index,
            data["user"].num_nodes,
            data["item"].num_nodes,
        )
        return next(sampler.epoch(size, torch.Generator().manual_seed(seed)))

    return draw


@pytest.fixture
def make_data() -> Callable[..., HeteroData]:
    """Builds small random data; modalities are given by name as feature size or as features."""

    def make(
        num_users: int = 12,
        num_items: int = 20,
        masks: dict[str, Tensor] | None = None,
        **channels: int | Tensor,
    ) -> HeteroData:
        generator = torch.Generator().manual_seed(7)
        data = HeteroData()
        data["user"].num_nodes, data["item"].num_nodes = num_users, num_items
        pairs = torch.rand(num_users, num_items, generator=generator) < 0.3
        data["user", "interacts", "item"].edge_index = pairs.nonzero().t().contiguous()
        for name, size in channels.items():
            x = torch.randn(num_items, size, generator=generator) if isinstance(size, int) else size
            having = torch.arange(num_items)
            if masks is not None and name in masks:
                data[name].mask = masks[name]
                x, having = x * masks[name][:, None], having[masks[name]]
            data[name].x = x
            data[name].num_nodes = num_items
            data[name, "describes", "item"].edge_index = torch.stack([having, having])
        return data

    return make


@pytest.fixture
def relabelled() -> Callable[[HeteroData, Tensor], HeteroData]:
    """The same data with item ``order[i]`` called ``i``."""

    def relabel(data: HeteroData, order: Tensor) -> HeteroData:
        other = copy.copy(data)
        inverse = order.argsort()
        user, item = data["user", "interacts", "item"].edge_index
        edge_index = torch.stack([user, inverse[item]])
        other["user", "interacts", "item"].edge_index = edge_index
        for name in ("image", "text"):
            other[name].x = data[name].x[order]
        return other

    return relabel
