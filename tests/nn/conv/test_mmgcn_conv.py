import pytest
import torch
from torch_geometric import EdgeIndex

from pyg_mmrec.data import Adjacency
from pyg_mmrec.nn.conv import MMGCNConv

# PyG converts sparse COO to CSR and recommends the caller to; torch announces unchecked invariants.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Converting sparse tensor to CSR"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks"),
]


@pytest.fixture(params=[(7, 5), (5, 7)], ids=["many-to-few", "few-to-many"])
def bipartite(request):
    """Sources, targets, IDs of the targets, edges; no edge enters the last target."""
    num_sources, num_targets = request.param
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randperm(num_sources * (num_targets - 1), generator=generator)[:13]
    edge_index = torch.stack([pairs // (num_targets - 1), pairs % (num_targets - 1)])
    sizes = ((num_sources, 3), (num_targets, 3), (num_targets, 2))
    tensors = (torch.randn(size, dtype=torch.float64, generator=generator) for size in sizes)
    return *tensors, edge_index


def build(concat=True, seed=0):
    torch.manual_seed(seed)
    conv = MMGCNConv(3, 2, concat).double()
    for name, parameter in conv.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return conv


def lrelu(x):
    return torch.where(x > 0, x, 0.01 * x)


def by_hand(conv, source, target, identity, edge_index, edge_mask=None):
    """The formula, target by target."""
    rows = []
    for i in range(target.size(0)):
        edges = edge_index[1] == i
        if edge_mask is not None:
            edges = edges & edge_mask
        neighbors = source[edge_index[0, edges]]
        mean = neighbors.sum(0) / max(len(neighbors), 1)
        h = lrelu(conv.lin_neighbor.weight @ mean)
        x_hat = lrelu(conv.lin_self.weight @ target[i] + conv.lin_self.bias) + identity[i]
        g = conv.lin_combined
        if conv.concat:
            rows.append(lrelu(g.weight @ torch.cat([h, x_hat]) + g.bias))
        else:
            rows.append(lrelu(g.weight @ h + x_hat))
    return torch.stack(rows)


@pytest.fixture
def graphs(bipartite, layouts):
    """The edges in every layout, with weights that are not to be read."""
    source, target, _, edge_index = bipartite
    weight = torch.rand(13, generator=torch.Generator().manual_seed(1))
    size = (source.size(0), target.size(0))
    return [(name, graph) for name, graph, _ in layouts(edge_index, weight, size)]


@pytest.mark.parametrize("concat", [True, False])
def test_every_layout_equals_the_formula(bipartite, graphs, concat):
    source, target, identity, edge_index = bipartite
    conv = build(concat)
    expected = by_hand(conv, source, target, identity, edge_index)
    size = (source.size(0), target.size(0))
    for name, graph in graphs:
        out = conv((source, target), graph, identity)
        torch.testing.assert_close(out, expected, msg=name)
        torch.testing.assert_close(conv((source, target), graph, identity, size=size), out)


@pytest.mark.parametrize("concat", [True, False])
def test_gradients_are_those_of_the_formula_on_every_layout(bipartite, graphs, concat):
    source, target, identity, edge_index = bipartite
    conv = build(concat)
    inputs = [x.requires_grad_() for x in (source, target, identity)]
    wanted = [*inputs, *conv.parameters()]
    upstream = torch.randn(target.size(0), 2, dtype=torch.float64)
    out = by_hand(conv, *inputs, edge_index)
    expected = torch.autograd.grad(out, wanted, upstream)
    for name, graph in graphs:
        out = conv((source, target), graph, identity)
        for x, y in zip(torch.autograd.grad(out, wanted, upstream), expected, strict=True):
            torch.testing.assert_close(x, y, msg=name)


def test_gradcheck(bipartite):
    *inputs, edge_index = bipartite
    conv = build()
    size = (inputs[0].size(0), inputs[1].size(0))
    adjacency = Adjacency.from_edge_index(edge_index, size=size)
    inputs = [x.requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(lambda *x: conv(x[:2], adjacency, x[2]), inputs)


def test_the_fast_path_equals_the_messages(bipartite, graphs):
    source, target, identity, edge_index = bipartite
    conv, slow = build(), build()
    slow.fuse = False
    assert conv.fuse
    for name, graph in graphs:
        if name.startswith("sparse"):
            out = slow((source, target), graph, identity)
            torch.testing.assert_close(conv((source, target), graph, identity), out, msg=name)


def test_masked_edges_do_not_count(bipartite):
    source, target, identity, edge_index = bipartite
    conv = build()
    mask = (torch.arange(13) % 3 > 0) & (edge_index[1] != 1)
    expected = by_hand(conv, source, target, identity, edge_index, mask)
    size = (source.size(0), target.size(0))
    order = (edge_index[1] * size[0] + edge_index[0]).argsort()
    for graph, edge_mask in (
        (edge_index, mask),
        (EdgeIndex(edge_index, sparse_size=size), mask),
        (Adjacency.from_edge_index(edge_index, size=size), mask[order]),
    ):
        out = conv((source, target), graph, identity, edge_mask)
        torch.testing.assert_close(out, expected)


def test_one_node_set_without_ids(bipartite):
    source, _, _, edge_index = bipartite
    edge_index = edge_index % source.size(0)  # with an edge from a node to itself, and twice
    conv = build()
    nothing = torch.zeros(source.size(0), 2, dtype=torch.float64)
    expected = by_hand(conv, source, source, nothing, edge_index)
    torch.testing.assert_close(conv(source, edge_index), expected)
    size = (source.size(0), source.size(0))
    torch.testing.assert_close(
        conv(source, Adjacency.from_edge_index(edge_index, size=size)), expected
    )


def test_inputs_are_left_as_they_are(bipartite):
    inputs = [x.clone() for x in bipartite[:3]]
    conv = build()
    conv((bipartite[0], bipartite[1]), bipartite[3], bipartite[2])
    assert all(torch.equal(x, y) for x, y in zip(bipartite, inputs, strict=False))


def test_compiles_without_graph_break(bipartite):
    source, target, identity, edge_index = bipartite
    adjacency = Adjacency.from_edge_index(edge_index, size=(source.size(0), target.size(0)))
    conv = build()
    mask = torch.arange(13) % 2 == 0
    torch._dynamo.reset()
    compiled = torch.compile(conv, backend="aot_eager", fullgraph=True)
    for edge_mask in (None, mask):
        arguments = ((source, target), adjacency, identity, edge_mask)
        torch.testing.assert_close(compiled(*arguments), conv(*arguments))


def test_weights_start_xavier_normal_and_biases_as_in_torch():
    torch.manual_seed(0)
    conv = MMGCNConv(200, 100)
    sizes = {"lin_neighbor": 400, "lin_self": 300, "lin_combined": 400}
    for name, size in sizes.items():
        weight = conv.get_submodule(name).weight
        assert weight.std().item() == pytest.approx((2 / size) ** 0.5, rel=0.03), name
    for lin in (conv.lin_self, conv.lin_combined):
        bound = lin.in_features**-0.5
        assert lin.bias.abs().max() <= bound and lin.bias.std() > bound / 3
    assert conv.lin_neighbor.bias is None and MMGCNConv(3, 2, False).lin_combined.bias is None
    before = {name: x.clone() for name, x in conv.named_parameters()}
    conv.reset_parameters()
    for name, x in conv.named_parameters():
        assert not torch.equal(x, before[name]), name


def test_bad_arguments_are_refused(bipartite):
    source, target, identity, edge_index = bipartite
    conv = build()
    size = (source.size(0), target.size(0))
    assert repr(conv) == "MMGCNConv(3, 2, concat=True)"
    with pytest.raises(ValueError, match="needs features of sources and of targets"):
        conv((source, None), edge_index)
    mask = torch.ones(13).bool()
    matrix = torch.sparse_coo_tensor(edge_index.flip(0), torch.ones(13), size[::-1]).coalesce()
    with pytest.raises(ValueError, match="'edge_mask' does not go with a sparse matrix"):
        conv((source, target), matrix, edge_mask=mask)
    adjacency = Adjacency.from_edge_index(edge_index, size=size)
    with pytest.raises(ValueError, match="'x' needs one row per target"):
        conv((source, source), adjacency)
    with pytest.raises(ValueError, match="'x' needs one row per source"):
        conv((target, target), adjacency)
    with pytest.raises(ValueError, match="'id_embedding' needs shape"):
        conv((source, target), adjacency, identity[1:])
    with pytest.raises(ValueError, match=r"'edge_mask' needs one boolean mark .*\[13\] .*\[12\]"):
        conv((source, target), adjacency, edge_mask=mask[1:])


@pytest.mark.parametrize("kwargs", [{"aggr": "add"}, {"flow": "target_to_source"}])
def test_only_the_mean_along_the_edges(kwargs):
    with pytest.raises(ValueError, match="of MMGCNConv is"):
        MMGCNConv(3, 2, **kwargs)
