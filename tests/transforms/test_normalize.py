from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch_geometric.data import HeteroData
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from pyg_mmrec.transforms import (
    NormalizeInteractions,
    normalize_item_graph,
    row_normalization,
    symmetric_normalization,
)

MakeData = Callable[..., HeteroData]
EDGE_INDEX = torch.tensor([[0, 0, 1, 3], [0, 2, 2, 2]])


def test_symmetric_normalization_equals_gcn_norm() -> None:
    weight = torch.tensor([0.5, 2.0, 1.0, 3.0])
    num_users, num_items = 4, 4
    shifted = torch.stack([EDGE_INDEX[0], EDGE_INDEX[1] + num_users])
    for edge_weight in (None, weight):
        both = None if edge_weight is None else edge_weight.repeat(2)
        _, expected = gcn_norm(
            torch.cat([shifted, shifted.flip(0)], dim=1), both, 8, add_self_loops=False
        )
        out = symmetric_normalization(EDGE_INDEX, num_users, num_items, edge_weight)
        torch.testing.assert_close(out, expected[:4])
        torch.testing.assert_close(out, expected[4:])


def test_symmetric_normalization_by_hand() -> None:
    expected = [1 / math.sqrt(d) for d in (2 * 1, 2 * 3, 1 * 3, 1 * 3)]
    torch.testing.assert_close(symmetric_normalization(EDGE_INDEX, 4, 3), torch.tensor(expected))


def test_weights_of_zero_stay_finite() -> None:
    out = symmetric_normalization(EDGE_INDEX, 4, 3, torch.zeros(4))
    assert out.tolist() == [0.0] * 4
    # One positive weight among zeros: the isolated other end counts with degree 1e-7.
    assert symmetric_normalization(EDGE_INDEX, 4, 3, torch.eye(4)[0]).isfinite().all()
    assert symmetric_normalization(torch.empty(2, 0, dtype=torch.int64), 4, 3).shape == (0,)


def test_normalizations_are_differentiable() -> None:
    weight = torch.tensor([0.5, 2.0, 1.0, 3.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda w: symmetric_normalization(EDGE_INDEX, 4, 3, w), (weight,)
    )
    assert torch.autograd.gradcheck(lambda w: normalize_item_graph(EDGE_INDEX, w, 4), (weight,))


def test_row_normalization_equals_dense() -> None:
    to_item, to_user, self_user, self_item = row_normalization(EDGE_INDEX, 5, 4)
    dense = torch.eye(9)
    dense[EDGE_INDEX[0], EDGE_INDEX[1] + 5] = 1.0
    dense[EDGE_INDEX[1] + 5, EDGE_INDEX[0]] = 1.0
    dense = dense / dense.sum(dim=1, keepdim=True)
    torch.testing.assert_close(to_user, dense[EDGE_INDEX[0], EDGE_INDEX[1] + 5])
    torch.testing.assert_close(to_item, dense[EDGE_INDEX[1] + 5, EDGE_INDEX[0]])
    torch.testing.assert_close(torch.cat([self_user, self_item]), dense.diagonal())


def test_normalize_item_graph_equals_dense() -> None:
    generator = torch.Generator().manual_seed(0)
    dense = torch.rand(6, 6, generator=generator) * (torch.rand(6, 6, generator=generator) < 0.5)
    dense[2] = 0.0  # no neighbours
    dense[3] = -0.1  # a negative row sum
    target, source = dense.nonzero().t()
    out = normalize_item_graph(torch.stack([source, target]), dense[target, source], 6)
    row_sum = dense.sum(dim=1)
    scale = torch.where(row_sum > 0, row_sum.clamp(min=1e-9) ** -0.5, torch.tensor(0.0))
    expected = scale[:, None] * dense * scale[None, :]
    torch.testing.assert_close(out, expected[target, source])
    assert bool((out[target == 3] == 0).all()) and bool((out[source == 2] == 0).all())


def test_gradient_stays_finite_where_a_row_sum_is_not_positive() -> None:
    weight = torch.tensor([0.5, -0.5, 0.0, 1.0], requires_grad=True)
    edge_index = torch.tensor([[0, 1, 2, 0], [0, 1, 2, 3]])
    normalize_item_graph(edge_index, weight, 4).sum().backward()
    assert weight.grad is not None and bool(weight.grad.isfinite().all())


def test_binary_item_graph_of_k_neighbors_has_value_one_over_k() -> None:
    target = torch.arange(8).repeat_interleave(4)
    source = (target + torch.arange(4).repeat(8)) % 8
    out = normalize_item_graph(torch.stack([source, target]), None, 8)
    torch.testing.assert_close(out, torch.full((32,), 0.25))


def test_transform_writes_a_new_tensor(make_data: MakeData) -> None:
    data = make_data()
    out = NormalizeInteractions()(data)
    store = out["user", "interacts", "item"]
    degree = torch.bincount(store.edge_index[0]), torch.bincount(store.edge_index[1])
    product = degree[0][store.edge_index[0]] * degree[1][store.edge_index[1]]
    torch.testing.assert_close(store.edge_weight, product.float() ** -0.5)
    assert "edge_weight" not in data["user", "interacts", "item"]
    assert repr(NormalizeInteractions()) == "NormalizeInteractions()"


def test_errors(make_data: MakeData) -> None:
    data = make_data()
    del data["user", "interacts", "item"]
    with pytest.raises(ValueError, match=r"the data needs 'edge_index' of the edge type"):
        NormalizeInteractions()(data)
    with pytest.raises(ValueError, match=r"shape \[2, num_edges\] \(got \[3, 1\]\)"):
        row_normalization(torch.zeros(3, 1, dtype=torch.int64), 1, 1)
    with pytest.raises(ValueError, match="one entry for each of 4 edges"):
        symmetric_normalization(EDGE_INDEX, 4, 3, torch.ones(3))
