from dataclasses import FrozenInstanceError, fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree
from torch_geometric import EdgeIndex
from torch_geometric.data import Data

from pyg_mmrec.data import Adjacency
from pyg_mmrec.data.adjacency import on_shared_edges


@st.composite
def graphs(draw):
    num_sources, num_targets = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    pair = st.tuples(st.integers(0, num_sources - 1), st.integers(0, num_targets - 1))
    pairs = draw(st.lists(pair, max_size=25))  # parallel edges included
    edge_index = torch.tensor(pairs, dtype=torch.long).view(-1, 2).t()
    return edge_index, torch.arange(1.0, len(pairs) + 1), (num_sources, num_targets)


def dense_sum(edge_index, weight, size):
    matrix = torch.zeros(size[1], size[0])
    for source, target, value in zip(*edge_index.tolist(), weight.tolist(), strict=True):
        matrix[target, source] += value
    return matrix


def assert_consistent(adjacency, expected):
    """Both orders hold the same matrix, are sorted, and the permutations lead between them."""
    a = adjacency
    size = (expected.size(1), expected.size(0))
    assert a.size == size
    torch.testing.assert_close(dense_sum(a.edge_index, a.weight, size), expected)
    t = a.t()
    torch.testing.assert_close(dense_sum(t.edge_index, t.weight, size[::-1]), expected.t())
    for one in (a, t):
        source, target = one.edge_index
        key = target * one.size[0] + source
        assert bool((key.diff() >= 0).all())
        assert int(one.rowptr[0]) == 0 and int(one.rowptr[-1]) == one.num_edges
        assert torch.equal(one.weight, one.weight_t[one.perm])
        assert torch.equal(one.weight_t, one.weight[one.perm_t])
        assert torch.equal(one.edge_index, one.t().edge_index.flip(0)[:, one.perm])


@given(graphs())
@settings(max_examples=60, deadline=None)
def test_both_orders_hold_the_graph(graph):
    edge_index, weight, size = graph
    adjacency = Adjacency.from_edge_index(edge_index, weight, size)
    assert adjacency.num_edges == weight.numel()
    assert_consistent(adjacency, dense_sum(edge_index, weight, size))
    other = weight.flip(0) ** 2
    changed = adjacency.with_weight(other)
    assert torch.equal(changed.weight, other)
    assert_consistent(changed, dense_sum(adjacency.edge_index, other, size))


@given(graphs(), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_selected_edges_are_the_subgraph(graph, random):
    edge_index, weight, size = graph
    adjacency = Adjacency.from_edge_index(edge_index, weight, size)
    kept = torch.tensor([random.random() < 0.5 for _ in range(adjacency.num_edges)]).bool()
    selected = adjacency.select(kept)
    chosen = adjacency.edge_index[:, kept], adjacency.weight[kept]
    assert torch.equal(selected.edge_index, chosen[0])
    assert_consistent(selected, dense_sum(*chosen, size))


def test_selecting_all_or_nothing():
    edge_index = torch.tensor([[2, 0, 1, 2], [1, 0, 1, 0]])
    adjacency = Adjacency.from_edge_index(edge_index, torch.rand(4), size=(3, 2))
    every = adjacency.select(torch.ones(4, dtype=torch.bool))
    for field in fields(Adjacency):
        assert torch.equal(getattr(every, field.name), getattr(adjacency, field.name))
    nothing = adjacency.select(torch.zeros(4, dtype=torch.bool))
    assert nothing.num_edges == 0
    assert_consistent(nothing, torch.zeros(2, 3))


def test_the_transpose_of_the_transpose_is_the_same_tensors():
    adjacency = Adjacency.from_edge_index(torch.tensor([[0, 1], [1, 1]]))
    for field in fields(Adjacency):
        back = adjacency.t().t()
        assert getattr(back, field.name) is getattr(adjacency, field.name)


def test_sizes_and_weights_by_default():
    adjacency = Adjacency.from_edge_index(torch.tensor([[0, 4], [2, 1]], dtype=torch.int32))
    assert adjacency.size == (5, 3)
    assert adjacency.weight.tolist() == [1.0, 1.0] and adjacency.weight.dtype == torch.float32
    assert adjacency.rowptr.dtype == adjacency.col.dtype == torch.int32
    assert adjacency.edge_index.dtype == torch.int64
    empty = Adjacency.from_edge_index(torch.empty(2, 0, dtype=torch.long))
    assert empty.size == (0, 0) and empty.num_edges == 0


def test_other_weights_reach_both_orders_with_their_gradient():
    edge_index = torch.tensor([[2, 0, 1, 2], [1, 0, 1, 0]])
    adjacency = Adjacency.from_edge_index(edge_index, size=(3, 2))
    weight = torch.arange(1.0, 5.0, requires_grad=True)
    changed = adjacency.with_weight(weight)
    assert_consistent(changed, dense_sum(adjacency.edge_index, weight.detach(), (3, 2)))
    factor = torch.tensor([1.0, 10.0, 100.0, 1000.0])
    (factor * changed.weight_t).sum().backward()
    assert torch.equal(weight.grad, factor[adjacency.perm])
    assert adjacency.weight.eq(1).all()


def test_a_symmetric_graph_shares_its_orders():
    edge_index = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    adjacency = Adjacency.from_edge_index(edge_index, size=(3, 3), symmetric=True)
    assert adjacency.col_t is adjacency.col and adjacency.rowptr_t is adjacency.rowptr
    assert adjacency.weight_t is adjacency.weight
    assert_consistent(adjacency, dense_sum(edge_index, torch.ones(4), (3, 3)))
    # Other weights need not be symmetric.
    changed = adjacency.with_weight(torch.arange(4.0))
    assert_consistent(changed, dense_sum(adjacency.edge_index, torch.arange(4.0), (3, 3)))


def test_it_is_a_tree_of_tensors():
    adjacency = Adjacency.from_edge_index(torch.tensor([[0, 1], [1, 1]]), torch.rand(2))
    leaves, structure = pytree.tree_flatten(adjacency)
    assert len(leaves) == 8 and all(isinstance(x, torch.Tensor) for x in leaves)
    again = pytree.tree_unflatten(leaves, structure)
    assert torch.equal(again.edge_index, adjacency.edge_index)
    with pytest.raises(FrozenInstanceError):
        adjacency.weight = torch.zeros(2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3, 2).long(),), r"integer tensor of shape \[2, num_edges\] .*\[3, 2\]"),
        ((torch.zeros(2, 2),), r"integer tensor .* \(got torch.float32 \[2, 2\]\)"),
        (
            (torch.zeros(2, 2).long(), torch.ones(3)),
            r"one weight per edge, shape \[2\] \(got \[3\]",
        ),
        (
            (torch.tensor([[0, 3], [0, 0]]), None, (3, 1)),
            r"sources outside \[0, 3\) \(got \[0, 3\]",
        ),
        (
            (torch.tensor([[0, 1], [0, 5]]), None, (2, 5)),
            r"targets outside \[0, 5\) \(got \[0, 5\]",
        ),
        ((torch.tensor([[-1, 1], [0, 0]]), None, (2, 5)), r"sources outside .*\(got \[-1, 1\]"),
        ((torch.tensor([[0, 1], [1, 1]]), None, (2, 2), True), "differs from its reverse"),
        ((torch.tensor([[0], [0]]), None, (1, 2), True), "differs from its reverse"),
    ],
)
def test_bad_graphs_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Adjacency.from_edge_index(*arguments)


def test_weights_and_marks_of_another_length_are_refused():
    adjacency = Adjacency.from_edge_index(torch.tensor([[0, 1], [1, 1]]))
    with pytest.raises(ValueError, match=r"'weight' needs one weight per edge, shape \[2\]"):
        adjacency.with_weight(torch.ones(3))
    for kept in (torch.ones(3, dtype=torch.bool), torch.tensor([0, 1])):
        with pytest.raises(ValueError, match=r"boolean vector of shape \[2\]"):
            adjacency.select(kept)


def test_an_edge_index_of_pyg_leaves_plain_tensors():
    edge_index = torch.tensor([[0, 1], [1, 1]])
    adjacency = Adjacency.from_edge_index(EdgeIndex(edge_index, sparse_size=(2, 2)))
    assert all(type(getattr(adjacency, field.name)) is torch.Tensor for field in fields(Adjacency))
    assert torch.equal(adjacency.edge_index, edge_index)


def test_graphs_on_shared_edges_keep_their_weights_and_gradients():
    generator = torch.Generator().manual_seed(0)
    dense = [torch.rand(5, 4, generator=generator) for _ in range(3)]
    dense = [m * (torch.rand(5, 4, generator=generator) < 0.4) for m in dense]
    weights, graphs = [], []
    for m in dense:
        target, source = m.nonzero().t()
        order = torch.randperm(source.numel(), generator=generator)
        edge_index = torch.stack([source, target])[:, order]
        weights.append(m[edge_index[1], edge_index[0]].requires_grad_())
        graphs.append(Adjacency.from_edge_index(edge_index, weights[-1], size=(4, 5)))
    shared = on_shared_edges(graphs)
    assert shared[0].num_edges == int((sum(dense) > 0).sum())
    for adjacency, m in zip(shared, dense, strict=True):
        assert torch.equal(adjacency.edge_index, shared[0].edge_index)
        assert_consistent(adjacency, m)
    total = shared[0].with_weight(shared[0].weight + 2 * shared[1].weight + 3 * shared[2].weight)
    assert_consistent(total, dense[0] + 2 * dense[1] + 3 * dense[2])
    gradients = torch.autograd.grad(total.weight.sum() + total.weight_t.sum(), weights)
    for factor, gradient in enumerate(gradients, 1):
        assert gradient.eq(2 * factor).all()


def test_shared_edges_of_graphs_without_edges_and_of_a_single_one():
    empty = Adjacency.from_edge_index(torch.empty(2, 0, dtype=torch.long), size=(2, 3))
    one = Adjacency.from_edge_index(torch.tensor([[0, 1], [2, 0]]), size=(2, 3))
    assert [a.num_edges for a in on_shared_edges([empty])] == [0]
    nothing, same = on_shared_edges([empty, one])
    assert torch.equal(same.edge_index, one.edge_index) and torch.equal(same.weight, one.weight)
    assert nothing.weight.eq(0).all()


@pytest.mark.parametrize("sizes", [[], [(2, 3), (3, 2)]])
def test_shared_edges_need_graphs_of_one_size(sizes):
    edge_index = torch.tensor([[0], [1]])
    graphs = [Adjacency.from_edge_index(edge_index, size=size) for size in sizes]
    with pytest.raises(ValueError, match="one or more graphs of the same size"):
        on_shared_edges(graphs)


def test_it_moves_with_the_data_that_hold_it():
    edge_index = torch.tensor([[0, 1], [1, 0]])
    graph = Adjacency.from_edge_index(edge_index, size=(2, 2), symmetric=True)
    moved = Data(x=torch.ones(2, 1), graph=graph).to("meta").graph
    assert all(x.device.type == "meta" for x in pytree.tree_leaves(moved))
    assert moved.weight is moved.weight_t and moved.col is moved.col_t
    assert graph.to("cpu").edge_index.equal(graph.edge_index)
