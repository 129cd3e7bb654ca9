import pytest
import torch
from torch_geometric import EdgeIndex

from pyg_mmrec.data import Adjacency
from pyg_mmrec.nn.conv import WeightedConv

NUM_SOURCES, NUM_TARGETS = 6, 4

# PyG converts sparse COO to CSR and recommends the caller to; torch announces unchecked invariants.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Converting sparse tensor to CSR"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks"),
]


@pytest.fixture
def bipartite():
    """Edges, weights, sources and the dense matrix; no edge enters the last target."""
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randperm(NUM_SOURCES * (NUM_TARGETS - 1), generator=generator)[:13]
    edge_index = torch.stack([pairs // (NUM_TARGETS - 1), pairs % (NUM_TARGETS - 1)])
    weight = torch.rand(13, generator=generator)
    x = torch.randn(NUM_SOURCES, 5, generator=generator)
    dense = torch.zeros(NUM_TARGETS, NUM_SOURCES)
    dense[edge_index[1], edge_index[0]] = weight
    return edge_index, weight, x, dense


@pytest.mark.parametrize("size", [(NUM_SOURCES, NUM_TARGETS), None])
def test_every_layout_gives_equal_results_and_gradients(bipartite, layouts, size):
    edge_index, weight, x, dense = bipartite
    conv = WeightedConv()
    for name, graph, edge_weight in layouts(edge_index, weight, (NUM_SOURCES, NUM_TARGETS)):
        if name.startswith("coo") and size is None:  # of which nothing tells the number of targets
            continue
        torch.testing.assert_close(conv((x, None), graph, edge_weight, size), dense @ x, msg=name)
        y = x.clone().requires_grad_()
        out = conv((y, None), graph, edge_weight, size)
        torch.testing.assert_close(out, dense @ x, msg=name)
        out.square().sum().backward()
        torch.testing.assert_close(y.grad, 2 * dense.t() @ (dense @ x), msg=name)


@pytest.mark.parametrize("sort_order", [None, "col"])
@pytest.mark.parametrize("sparse_size", [(None, None), (NUM_SOURCES, None), (None, NUM_TARGETS)])
@pytest.mark.parametrize("learns", [False, True])
def test_edges_that_do_not_tell_their_sizes(bipartite, sort_order, sparse_size, learns):
    edge_index, _, x, dense = bipartite
    edge_index = edge_index[:, edge_index[1].argsort()]
    graph = EdgeIndex(edge_index, sparse_size=sparse_size, sort_order=sort_order)
    x.requires_grad_(learns)
    out = WeightedConv()((x, None), graph, size=(NUM_SOURCES, NUM_TARGETS))
    torch.testing.assert_close(out, dense.ne(0).float() @ x)
    square = WeightedConv()(x, EdgeIndex(edge_index, sort_order=sort_order))
    torch.testing.assert_close(square[:NUM_TARGETS], out)
    assert square.size(0) == NUM_SOURCES and square[NUM_TARGETS:].eq(0).all()


@pytest.mark.parametrize("layout", ["coo", "csr", "csc"])
@pytest.mark.parametrize("both", [False, True])
def test_learned_values_of_a_matrix_get_their_gradient(bipartite, layout, both):
    edge_index, weight, x, _ = bipartite
    weight, x = weight.requires_grad_(), x.requires_grad_(both)
    matrix = torch.sparse_coo_tensor(edge_index.flip(0), weight, (NUM_TARGETS, NUM_SOURCES))
    if layout != "coo":
        matrix = matrix.coalesce().to_sparse(layout=getattr(torch, f"sparse_{layout}"))
    out = WeightedConv()((x, None), matrix)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    (grad,) = torch.autograd.grad(out, weight, upstream)
    torch.testing.assert_close(grad, (upstream[edge_index[1]] * x[edge_index[0]]).sum(1))


def test_fast_path_equals_messages(bipartite, layouts):
    edge_index, weight, x, dense = bipartite
    size = (NUM_SOURCES, NUM_TARGETS)
    conv = WeightedConv()
    slow = conv((x, None), edge_index, weight, size=size)
    conv.fuse = True
    for name, graph, edge_weight in layouts(edge_index, weight, size):
        if name.removesuffix(" of int32") in ("coo", "edge_index", "adjacency"):
            continue
        fused = conv.message_and_aggregate(graph, (x, None), edge_weight)
        torch.testing.assert_close(fused, slow, msg=name)


@pytest.mark.parametrize("layout", ["coo", "edge_index"])
def test_weights_are_one_per_edge(bipartite, layouts, layout):
    edge_index, weight, x, _ = bipartite
    size = (NUM_SOURCES, NUM_TARGETS)
    graph = {name: graph for name, graph, _ in layouts(edge_index, weight, size)}[layout]
    with pytest.raises(ValueError, match=r"'edge_weight' needs one number per edge, shape \["):
        WeightedConv()((x, None), graph, weight[1:], size)


@pytest.mark.parametrize("layout", ["coo", "edge_index", "adjacency"])
def test_edge_weights_get_their_gradient(bipartite, layout):
    edge_index, weight, x, _ = bipartite
    order = (edge_index[1] * NUM_SOURCES + edge_index[0]).argsort()
    edge_index, weight = edge_index[:, order], weight[order].requires_grad_()
    size = (NUM_SOURCES, NUM_TARGETS)
    graph = {
        "coo": edge_index,
        "edge_index": EdgeIndex(edge_index, sparse_size=size, sort_order="col"),
        "adjacency": Adjacency.from_edge_index(edge_index, size=size),
    }[layout]
    out = WeightedConv()((x, None), graph, weight, size=size)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    (grad,) = torch.autograd.grad(out, weight, upstream)
    torch.testing.assert_close(grad, (upstream[edge_index[1]] * x[edge_index[0]]).sum(1))


def test_symmetric_adjacency_shares_its_storage():
    edge_index = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    weight = torch.tensor([0.5, 0.5, 2.0, 2.0])
    adjacency = Adjacency.from_edge_index(edge_index, weight, size=(3, 3), symmetric=True)
    assert adjacency.weight_t is adjacency.weight and adjacency.col_t is adjacency.col
    x = torch.randn(3, 2, requires_grad=True)
    WeightedConv()(x, adjacency).sum().backward()
    plain = Adjacency.from_edge_index(edge_index, weight, size=(3, 3))
    other = x.detach().clone().requires_grad_()
    WeightedConv()(other, plain).sum().backward()
    torch.testing.assert_close(x.grad, other.grad)
    with pytest.raises(ValueError, match="differs from its reverse"):
        Adjacency.from_edge_index(edge_index, weight.cumsum(0), size=(3, 3), symmetric=True)


def test_edge_order_does_not_matter(bipartite):
    edge_index, weight, x, _ = bipartite
    shuffle = torch.randperm(13, generator=torch.Generator().manual_seed(3))
    size = (NUM_SOURCES, NUM_TARGETS)
    one = Adjacency.from_edge_index(edge_index, weight, size=size)
    other = Adjacency.from_edge_index(edge_index[:, shuffle], weight[shuffle], size=size)
    assert torch.equal(WeightedConv()((x, None), one), WeightedConv()((x, None), other))


def test_weights_beside_a_sparse_matrix_are_refused(bipartite):
    edge_index, weight, x, dense = bipartite
    with pytest.raises(ValueError, match="does not go with a sparse matrix"):
        WeightedConv()((x, None), dense.to_sparse_csr(), weight)


@pytest.mark.parametrize("kwargs", [{"aggr": "mean"}, {"flow": "target_to_source"}])
def test_only_the_weighted_sum_along_the_edges(kwargs):
    with pytest.raises(ValueError, match="of WeightedConv is"):
        WeightedConv(**kwargs)
