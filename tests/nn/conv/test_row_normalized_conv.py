import pytest
import torch

from pyg_mmrec.data import Adjacency
from pyg_mmrec.nn.conv import RowNormalizedConv
from pyg_mmrec.transforms import row_normalization

NUM_SOURCES, NUM_TARGETS = 6, 5
SIZE = (NUM_SOURCES, NUM_TARGETS)

# PyG converts sparse COO to CSR and recommends the caller to; torch announces unchecked invariants.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Converting sparse tensor to CSR"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks"),
]


@pytest.fixture
def bipartite():
    """Sources, targets, edges and their weights, by target, then source; none enters the last."""
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randperm(NUM_SOURCES * (NUM_TARGETS - 1), generator=generator)[:13].sort().values
    edge_index = torch.stack([pairs % NUM_SOURCES, pairs // NUM_SOURCES])
    sizes = ((NUM_SOURCES, 3), (NUM_TARGETS, 3), (13,))
    tensors = (torch.rand(size, dtype=torch.float64, generator=generator) for size in sizes)
    return edge_index, *tensors


def by_hand(source, target, edge_index, edge_weight):
    rows = []
    for i in range(target.size(0)):
        total, degree = target[i], 1
        for edge in (edge_index[1] == i).nonzero():
            weight = edge_weight[edge.item()]
            total = total + weight * source[edge_index[0, edge.item()]]
            degree = degree + weight
        rows.append(total / degree)
    return torch.stack(rows)


def test_every_layout_equals_the_formula(bipartite, layouts):
    edge_index, source, target, weight = bipartite
    conv = RowNormalizedConv()
    pattern = ("pattern", Adjacency.from_edge_index(edge_index, size=SIZE), weight)
    for name, graph, edge_weight in (*layouts(edge_index, weight, SIZE), pattern):
        x = source.requires_grad_(), target.requires_grad_()
        out, expected = conv(x, graph, edge_weight, size=SIZE), by_hand(*x, edge_index, weight)
        torch.testing.assert_close(out, expected, msg=name)
        upstream = torch.arange(out.numel(), dtype=out.dtype).view_as(out)
        found = torch.autograd.grad(out, x, upstream)
        torch.testing.assert_close(found, torch.autograd.grad(expected, x, upstream), msg=name)


@pytest.mark.parametrize("layout", ["coo", "sorted edge_index", "adjacency"])
def test_edge_weights_get_their_gradient_also_through_the_degree(bipartite, layouts, layout):
    edge_index, source, target, weight = bipartite
    weight.requires_grad_()
    graph = {name: g for name, g, _ in layouts(edge_index, torch.ones(13), SIZE)}[layout]
    out = RowNormalizedConv()((source, target), graph, weight, size=SIZE)
    expected = by_hand(source, target, edge_index, weight)
    upstream = torch.arange(out.numel(), dtype=out.dtype).view_as(out)
    (found,) = torch.autograd.grad(out, weight, upstream)
    torch.testing.assert_close(found, torch.autograd.grad(expected, weight, upstream)[0])


def test_without_weights_it_is_the_row_normalised_matrix_with_self_loops(bipartite):
    edge_index, source, target, _ = bipartite
    to_target, to_source, self_source, self_target = row_normalization(edge_index, *SIZE)
    for graph in (edge_index, Adjacency.from_edge_index(edge_index, size=SIZE)):
        out = RowNormalizedConv()((source, target), graph, size=SIZE)
        expected = self_target[:, None] * target
        message = to_target[:, None] * source[edge_index[0]]
        torch.testing.assert_close(out, expected.index_add(0, edge_index[1], message.double()))
        back = edge_index.flip(0) if graph is edge_index else graph.t()
        out = RowNormalizedConv()((target, source), back, size=SIZE[::-1])
        expected = self_source[:, None] * source
        message = to_source[:, None] * target[edge_index[1]]
        torch.testing.assert_close(out, expected.index_add(0, edge_index[0], message.double()))


def test_one_kind_of_nodes_is_a_mean_with_self_loops():
    edge_index = torch.tensor([[0, 1, 1], [1, 0, 2]])
    x = torch.tensor([[1.0], [2.0], [4.0], [7.0]])
    expected = torch.tensor([[1.5], [1.5], [3.0], [7.0]])
    torch.testing.assert_close(RowNormalizedConv()(x, edge_index), expected)
    graph = Adjacency.from_edge_index(edge_index, size=(4, 4))
    torch.testing.assert_close(RowNormalizedConv()(x, graph), expected)


def test_targets_features_are_needed(bipartite):
    edge_index, source, _, _ = bipartite
    with pytest.raises(ValueError, match=r"'x' needs the features of the targets, too \(got None"):
        RowNormalizedConv()((source, None), edge_index, size=SIZE)


def test_repr():
    assert repr(RowNormalizedConv()) == "RowNormalizedConv()"
