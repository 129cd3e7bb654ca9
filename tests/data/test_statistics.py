from __future__ import annotations

import json

import pytest
import torch
from torch_geometric.data import HeteroData

from pyg_mmrec.data import fingerprints, statistics


def build() -> HeteroData:
    data = HeteroData()
    data["user"].num_nodes, data["item"].num_nodes = 4, 6
    store = data["user", "interacts", "item"]
    store.edge_index = torch.tensor([[0, 0, 2], [1, 2, 2]])
    store.val_label_index = torch.tensor([[0, 2], [4, 1]])
    store.test_label_index = torch.tensor([[0, 2], [4, 5]])
    data["text"].x = torch.ones(6, 3)
    data["text"].mask = torch.tensor([True] * 4 + [False] * 2)
    data["image", "similar", "image"].edge_index = torch.zeros(2, 1, dtype=torch.long)
    data["image", "similar", "image"].k = 10
    data["image"].num_nodes = 6
    return data


def test_statistics() -> None:
    data = build()
    data.dropped = {"duplicate_pairs": 3}
    out = statistics(data)
    assert out == {
        "users": 4,
        "items": 6,
        "interactions": 7,
        "training": 3,
        "validation": 2,
        "test": 2,
        "density": 7 / 24,
        "users_without_training": 2,
        "items_without_training": 4,
        "cold_items": 2,
        "modalities": {
            "image": {"dim": None, "missing": 0, "neighbors": 10},
            "text": {"dim": 3, "missing": 2, "neighbors": None},
        },
        "dropped": {"duplicate_pairs": 3},
    }
    assert json.loads(json.dumps(out)) == out
    assert statistics(build())["dropped"] == {}


def test_statistics_needs_interactions() -> None:
    with pytest.raises(ValueError, match=r"'data' needs \('user', 'interacts', 'item'\) edges"):
        statistics(HeteroData())


@pytest.mark.parametrize("name", ["edge_index", "val_label_index", "test_label_index"])
def test_a_split_that_lacks_is_named(name: str) -> None:
    data = build()
    del data["user", "interacts", "item"][name]
    with pytest.raises(ValueError, match=f"the data needs '{name}'"):
        statistics(data)


def test_an_item_graph_may_not_tell_its_number_of_neighbors() -> None:
    data = build()
    del data["image", "similar", "image"].k
    assert statistics(data)["modalities"]["image"]["neighbors"] is None


def test_fingerprints_tell_what_differs() -> None:
    ours = fingerprints(build())
    data = build()
    data["text"].x[5] += 1  # of an item without text
    data["text"].x[0] += 1
    data["user", "interacts", "item"].test_label_index[1, 0] = 3
    data["image", "similar", "image"].edge_index[0, 0] = 1
    theirs = fingerprints(data)
    assert ours.keys() == theirs.keys()
    assert {name for name in ours if ours[name] != theirs[name]} == {
        "features of text", "test pairs", "edge_index of ('image', 'similar', 'image')"
    }  # fmt: skip
