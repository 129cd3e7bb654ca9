"""Even users like even items, odd ones odd items; of every user, the item of its own number is
held out. Whoever learns anything ranks it first, for there is no other item left to like.
"""

import pytest
import torch
from torch_geometric.data import HeteroData

from pyg_mmrec.nn.backbones import (
    BM3,
    BPRMF,
    FREEDOM,
    GRCN,
    LATTICE,
    MMGCN,
    VBPR,
    VLATTICE,
    ItemKNN,
    LayerGCN,
    LightGCN,
    MostPop,
    SelfCF,
    VLightGCN,
)
from pyg_mmrec.nn.objectives import DVIBa, DVIBc, Objective
from pyg_mmrec.training import TripletSampler

SIZE = 20


@pytest.fixture
def board():
    generator = torch.Generator().manual_seed(0)
    data = HeteroData()
    data["user"].num_nodes = data["item"].num_nodes = SIZE
    ids = torch.arange(SIZE)
    liked = (ids[:, None] + ids) % 2 == 0
    data["user", "interacts", "item"].edge_index = (liked & ~torch.eye(SIZE).bool()).nonzero().t()
    for name in ("image", "text"):
        sides = torch.randn(2, 6, generator=generator)[ids % 2]
        data[name].x = sides + 0.3 * torch.randn(SIZE, 6, generator=generator)
    return data


@torch.no_grad()
def held_out_first(backbone, data):
    """Share of users for whom the held-out item is the best of those outside training."""
    graph = backbone.graph(data)
    backbone.eval()
    scores = backbone.scores(backbone(graph), graph, torch.arange(SIZE)).clone()
    user, item = data["user", "interacts", "item"].edge_index
    scores[user, item] = -torch.inf
    return (scores.argmax(1) == torch.arange(SIZE)).float().mean().item()


def train(backbone, methods, data, steps=60):
    objective = Objective(backbone, *methods)
    full = backbone.graph(data)
    sampler = TripletSampler(data["user", "interacts", "item"].edge_index, SIZE, SIZE)
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.02)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        graph = backbone.sample_graph(full, step, generator)
        (batch,) = sampler.epoch(SIZE**2, generator)
        loss = torch.stack(list(objective(graph, batch).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("methods", [[], [DVIBa], [DVIBc]], ids=["alone", "DVIBa", "DVIBc"])
@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (LightGCN, {}),
        (VBPR, {}),
        (VBPR, {"site": "item"}),
        (FREEDOM, {"k": 4}),
        (FREEDOM, {"k": 4, "num_item_layers": 2, "edge_dropout": 0.2}),
        (GRCN, {"preset": "mmrec"}),
        (BPRMF, {}),
        (LayerGCN, {}),
        (SelfCF, {"reg_weight": 1e-4}),
        (BM3, {}),
        (LATTICE, {"k": 4}),
        (LATTICE, {"k": 4, "num_item_layers": 2, "cf_model": "mf"}),
        (MMGCN, {}),
        (MMGCN, {"concat": False}),
    ],
    ids=[
        "LightGCN",
        "VBPR",
        "VBPR-item",
        "FREEDOM",
        "FREEDOM-2",
        "GRCN-mmrec",
        "BPRMF",
        "LayerGCN",
        "SelfCF",
        "BM3",
        "LATTICE",
        "LATTICE-2-mf",
        "MMGCN",
        "MMGCN-add",
    ],
)
def test_trained_backbones_rank_the_held_out_item_first(board, cls, options, methods):
    torch.manual_seed(0)
    backbone = cls.from_data(board, embedding_dim=16, **options)
    assert held_out_first(backbone, board) < 0.9
    train(backbone, [method() for method in methods], board)
    assert held_out_first(backbone, board) == 1.0


@pytest.mark.parametrize("methods", [[], [DVIBa], [DVIBc]], ids=["alone", "DVIBa", "DVIBc"])
@pytest.mark.parametrize(("cls", "options"), [(GRCN, {}), (VLightGCN, {}), (VLATTICE, {"k": 4})])
def test_propagated_content_needs_telling_features_or_training(board, cls, options, methods):
    torch.manual_seed(0)
    assert held_out_first(cls.from_data(board, embedding_dim=16, **options), board) == 1.0
    for name in ("image", "text"):
        board[name].x = torch.randn(SIZE, 6)
    backbone = cls.from_data(board, embedding_dim=16, **options)
    assert held_out_first(backbone, board) < 0.9
    train(backbone, [method() for method in methods], board)
    assert held_out_first(backbone, board) == 1.0


def test_item_neighbours_rank_the_held_out_item_first(board):
    assert held_out_first(ItemKNN.from_data(board), board) == 1.0


def test_popularity_does_not(board):
    assert held_out_first(MostPop.from_data(board), board) < 0.5
