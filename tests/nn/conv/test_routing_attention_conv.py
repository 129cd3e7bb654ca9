import pytest
import torch
from torch_geometric.typing import WITH_TORCH_SPARSE, SparseTensor

from pyg_mmrec.data import Adjacency
from pyg_mmrec.nn.conv import RoutingAttentionConv

SIZE = (6, 5)

# PyG converts sparse COO to CSR and recommends the caller to; torch announces unchecked invariants.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Converting sparse tensor to CSR"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks"),
]


@pytest.fixture
def bipartite():
    """Sources, targets and edges; no edge enters the last target."""
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randperm(SIZE[0] * (SIZE[1] - 1), generator=generator)[:13]
    edge_index = torch.stack([pairs // (SIZE[1] - 1), pairs % (SIZE[1] - 1)])
    source = torch.randn(SIZE[0], 3, dtype=torch.float64, generator=generator)
    target = torch.randn(SIZE[1], 3, dtype=torch.float64, generator=generator)
    return source, target, edge_index


def attend(source, target, edge_index, edge_mask=None):
    """The formula, target by target; a dense matrix of attention, row = target."""
    rows, dense = [], torch.zeros(target.size(0), source.size(0), dtype=source.dtype)
    for i in range(target.size(0)):
        edges = edge_index[1] == i
        if edge_mask is not None:
            edges = edges & edge_mask
        j = edge_index[0, edges]
        alpha = torch.tensor([(target[i] @ source[k]).item() for k in j]).to(source).softmax(0)
        dense[i, j] = alpha
        rows.append(sum((a * source[k] for a, k in zip(alpha, j, strict=True)), 0 * source[0]))
    return torch.stack(rows), dense


def dense_attention(returned):
    """What ``return_attention_weights`` gives, as a dense matrix."""
    if WITH_TORCH_SPARSE and isinstance(returned, SparseTensor):
        return returned.to_dense()
    graph, alpha = returned
    if isinstance(graph, torch.Tensor) and graph.layout is not torch.strided:
        return graph.to_dense()
    j, i = graph.edge_index if isinstance(graph, Adjacency) else graph
    dense = torch.zeros(SIZE[1], SIZE[0], dtype=alpha.dtype)
    dense[i, j] = alpha
    return dense


def test_every_layout_equals_the_formula(bipartite, layouts):
    source, target, edge_index = bipartite
    expected, attention = attend(source, target, edge_index)
    conv = RoutingAttentionConv()
    weight = torch.rand(13, dtype=torch.float64)
    for name, graph, _ in layouts(edge_index, weight, SIZE):  # weights are not read
        out, returned = conv((source, target), graph, return_attention_weights=True)
        torch.testing.assert_close(out, expected, msg=name)
        torch.testing.assert_close(dense_attention(returned), attention, msg=name)
        assert torch.equal(conv((source, target), graph, size=SIZE), out), name
    assert expected[-1].eq(0).all()


def test_gradients_are_right_and_equal_on_every_layout(bipartite, layouts):
    source, target, edge_index = bipartite
    conv = RoutingAttentionConv()
    weight = torch.rand(13, dtype=torch.float64)
    for name, graph, _ in layouts(edge_index, weight, SIZE):  # weights are not read
        x = source.clone().requires_grad_(), target.clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda *x, graph=graph: conv(x, graph), x), name


def test_masked_edges_neither_send_nor_share(bipartite):
    source, target, edge_index = bipartite
    mask = (torch.arange(13) % 3 > 0) & (edge_index[1] != 1)
    expected, attention = attend(source, target, edge_index, mask)
    adjacency = Adjacency.from_edge_index(edge_index, size=SIZE)
    order = (edge_index[1] * SIZE[0] + edge_index[0]).argsort()
    conv = RoutingAttentionConv()
    for graph, edge_mask in ((edge_index, mask), (adjacency, mask[order])):
        out, returned = conv(
            (source, target), graph, edge_mask=edge_mask, return_attention_weights=True
        )
        torch.testing.assert_close(out, expected)
        torch.testing.assert_close(dense_attention(returned), attention)


def test_one_node_set(bipartite):
    source, _, edge_index = bipartite
    expected, _ = attend(source, source, edge_index)
    torch.testing.assert_close(RoutingAttentionConv()(source, edge_index), expected)
    adjacency = Adjacency.from_edge_index(edge_index, size=(6, 6))
    torch.testing.assert_close(RoutingAttentionConv()(source, adjacency), expected)


def test_compiles_without_graph_break(bipartite):
    source, target, edge_index = bipartite
    adjacency = Adjacency.from_edge_index(edge_index, size=SIZE)
    conv = RoutingAttentionConv()
    compiled = torch.compile(conv, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(
        compiled((source, target), adjacency), conv((source, target), adjacency)
    )


def test_bad_arguments_are_refused(bipartite):
    source, target, edge_index = bipartite
    conv = RoutingAttentionConv()
    assert repr(conv) == "RoutingAttentionConv()"
    with pytest.raises(ValueError, match="needs features of sources and of targets"):
        conv((source, None), edge_index)
    matrix = torch.sparse_coo_tensor(edge_index.flip(0), torch.ones(13), SIZE[::-1]).coalesce()
    with pytest.raises(ValueError, match="'edge_mask' does not go with a sparse matrix"):
        conv((source, target), matrix, edge_mask=torch.ones(13).bool())
    with pytest.raises(ValueError, match="'left' needs one floating-point row per target"):
        conv((target, source), Adjacency.from_edge_index(edge_index, size=SIZE))


@pytest.mark.parametrize("kwargs", [{"aggr": "mean"}, {"flow": "target_to_source"}])
def test_only_the_attention_along_the_edges(kwargs):
    with pytest.raises(ValueError, match="of RoutingAttentionConv is"):
        RoutingAttentionConv(**kwargs)
