from __future__ import annotations

import pytest
import torch

from pyg_mmrec.transforms import ItemCosineGraph


def test_it_is_the_cosine_of_the_columns(make_data):
    data = make_data()
    store = data["user", "interacts", "item"]
    matrix = torch.zeros(12, 20)
    matrix[store.edge_index[0], store.edge_index[1]] = 1
    cosine = torch.nn.functional.normalize(matrix, dim=0)
    cosine = (cosine.t() @ cosine).fill_diagonal_(0)
    graph = ItemCosineGraph(k=20)(data)["item", "co_interacted", "item"]
    found = torch.zeros(20, 20)
    found[graph.edge_index[0], graph.edge_index[1]] = graph.edge_weight
    torch.testing.assert_close(found, cosine)


def test_a_pair_that_occurs_twice_counts_once(make_data):
    data = make_data()
    once = ItemCosineGraph(k=5)(data)["item", "co_interacted", "item"]
    store = data["user", "interacts", "item"]
    store.edge_index = torch.cat([store.edge_index, store.edge_index[:, :7]], 1)
    twice = ItemCosineGraph(k=5)(data)["item", "co_interacted", "item"]
    torch.testing.assert_close(twice.edge_weight, once.edge_weight)
    assert torch.equal(twice.edge_index, once.edge_index)


def test_errors(make_data):
    with pytest.raises(ValueError, match=r"'k' needs to be a positive integer \(got 0\)"):
        ItemCosineGraph(0)
    data = make_data()
    del data["user", "interacts", "item"]
    with pytest.raises(ValueError, match="the data needs 'edge_index'"):
        ItemCosineGraph()(data)
