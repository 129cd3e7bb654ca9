"""Sparse products stay in full precision under autocast."""

import importlib

import pytest
import torch

from pyg_mmrec.data import Adjacency
from pyg_mmrec.nn.conv import LightPropagation, MMGCNConv, RowNormalizedConv, WeightedConv

NUM_USERS, NUM_ITEMS = 7, 5
ROWS = (torch.tensor([3, 0, 3]), torch.tensor([4, 1]))


@pytest.fixture(params=["own kernel", "kernel of a GPU"])
def kernel(request, monkeypatch):
    """Runs a test on the kernel of the CPU, and on that of a GPU."""
    if request.param == "kernel of a GPU":
        module = importlib.import_module("pyg_mmrec.nn.functional.spmm")
        monkeypatch.setattr(module, "_sums_bags", lambda x: False)


@pytest.fixture
def graph():
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randperm(NUM_USERS * NUM_ITEMS, generator=generator)[:18]
    edge_index = torch.stack([pairs // NUM_ITEMS, pairs % NUM_ITEMS])
    weight = torch.rand(18, generator=generator)
    x = torch.randn(NUM_USERS + NUM_ITEMS, 3, generator=generator).bfloat16().float()
    to_item = Adjacency.from_edge_index(edge_index, weight, size=(NUM_USERS, NUM_ITEMS))
    return to_item, *x.split([NUM_USERS, NUM_ITEMS])


def every_row(to_item, user, item):
    return LightPropagation(2)(user, item, to_item, to_item.t())


def some_rows(to_item, user, item):
    return LightPropagation(2)(user, item, to_item, to_item.t(), ROWS)


def row_normalized(to_item, user, item):
    conv = RowNormalizedConv()
    return conv((user, item), to_item), conv((item, user), to_item.t())


def weighted(to_item, user, item):
    return WeightedConv()((user, None), to_item), WeightedConv()((item, None), to_item.t())


def weighted_by_sparse_matrix(to_item, user, item):
    sources, targets = to_item.edge_index
    shape = (NUM_ITEMS, NUM_USERS)
    matrix = torch.sparse_coo_tensor(
        torch.stack([targets, sources]), to_item.weight, shape, check_invariants=True
    )
    to_users = matrix.t().to_sparse_csr()
    return WeightedConv()((user, None), matrix), WeightedConv()((item, None), to_users)


RUNS = [every_row, some_rows, row_normalized, weighted, weighted_by_sparse_matrix]


@pytest.mark.filterwarnings("ignore:Converting sparse tensor to CSR")
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("learned", [False, True], ids=["constant", "learned"])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_results_and_gradients_are_those_without_autocast(graph, kernel, run, learned, half):
    to_item, *x = graph
    inputs = [part.requires_grad_() for part in x]
    if learned:
        weight = to_item.weight.clone().requires_grad_()
        to_item, inputs = to_item.with_weight(weight), [weight, *inputs]
    expected = run(to_item, *x)
    upstream = [torch.randn_like(part) for part in expected]
    wanted = torch.autograd.grad(expected, inputs, upstream, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = run(to_item, *(part.bfloat16() if half else part for part in x))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    tolerance = {"rtol": 1e-2, "atol": 1e-2} if half else {}
    grads = torch.autograd.grad(found, inputs, upstream)
    for one, other in zip(grads, wanted, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


def test_means_of_mmgcn_keep_their_weights(graph, kernel):
    to_item, user, item = graph
    conv = MMGCNConv(3, 2)
    for x, edges in (((user, item), to_item), ((item, user), to_item.t())):
        expected = conv._mean(*x, edges, None, None)
        with torch.autocast("cpu", torch.bfloat16):
            found = conv._mean(x[0].bfloat16(), x[1], edges, None, None)
        torch.testing.assert_close(found, expected)
