import pytest
import torch

from pyg_mmrec.nn.conv import CosineKNNConv, cosine_knn_adjacency

NUM_NODES = 9


def draw(channels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(NUM_NODES, channels, dtype=torch.float64, generator=generator)


def dense_graph(z, k, mask=None):
    """Row = node, column = its neighbour, node by node; the choice of neighbours is constant."""
    taking_part = [i for i in range(len(z)) if z[i].any() and (mask is None or mask[i])]
    rows = []
    for i in range(len(z)):
        cosine = {j: z[i] @ z[j] / (z[i] @ z[i] * (z[j] @ z[j])).sqrt() for j in taking_part}
        best = sorted(taking_part, key=cosine.__getitem__, reverse=True)[:k]
        inside = i in taking_part
        zero = z.new_zeros(())
        rows.append(
            torch.stack([cosine[j] if inside and j in best else zero for j in range(len(z))])
        )
    return torch.stack(rows)


def densified(adjacency):
    source, target = adjacency.edge_index
    dense = adjacency.weight.new_zeros(NUM_NODES, NUM_NODES)
    return dense.index_put((target, source), adjacency.weight)


def propagated(graph, x):
    total = graph.sum(1)
    scale = torch.where(total > 0, total, torch.ones_like(total)) ** -0.5 * (total > 0)
    return scale[:, None] * graph @ (scale[:, None] * x)


@pytest.mark.parametrize("k", [1, 3, 20])
@pytest.mark.parametrize("lacking", [None, 4])
def test_equals_the_formula_in_value_and_gradient(k, lacking):
    x, z = draw(2, seed=1).requires_grad_(), draw(3)
    z[6] = 0
    z.requires_grad_()
    mask = None if lacking is None else torch.arange(NUM_NODES) != lacking
    found = densified(cosine_knn_adjacency(z, k, mask))
    expected = dense_graph(z, k, mask)
    torch.testing.assert_close(found, expected)
    out, expected = CosineKNNConv(k)(x, z, mask), propagated(expected, x)
    torch.testing.assert_close(out, expected)
    upstream = draw(2, seed=2)
    for one, other in zip(
        torch.autograd.grad(out, (x, z), upstream),
        torch.autograd.grad(expected, (x, z), upstream),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
    assert k == 1 or other.count_nonzero()  # a node is always as similar to itself


def test_gradcheck():
    x, z = draw(2, seed=1).requires_grad_(), draw(3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, z: CosineKNNConv(3)(x, z), (x, z))


def test_the_length_of_a_vector_does_not_matter():
    x, z = draw(2, seed=1), draw(3)
    scaled = z * torch.arange(1, NUM_NODES + 1)[:, None]
    torch.testing.assert_close(CosineKNNConv(3)(x, scaled), CosineKNNConv(3)(x, z))


def test_relabelled_nodes_give_relabelled_results():
    x, z = draw(2, seed=1), draw(3)
    order = torch.randperm(NUM_NODES, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(CosineKNNConv(3)(x[order], z[order]), CosineKNNConv(3)(x, z)[order])


def test_nodes_left_out_are_neither_sources_nor_targets():
    mask = torch.arange(NUM_NODES) % 2 > 0
    adjacency = cosine_knn_adjacency(draw(3), 3, mask)
    assert adjacency.size == (NUM_NODES, NUM_NODES)
    assert adjacency.num_edges == 3 * int(mask.sum()) and mask[adjacency.edge_index].all()
    assert CosineKNNConv(3)(draw(2, seed=1), draw(3), mask)[~mask].eq(0).all()


@pytest.mark.parametrize("k", [0, -1, True, 2.0])
def test_bad_numbers_of_neighbours_are_refused(k):
    with pytest.raises(ValueError, match="'k' needs to be a positive integer"):
        CosineKNNConv(k)


def test_bad_vectors_are_refused():
    with pytest.raises(ValueError, match="need to be finite"):
        cosine_knn_adjacency(torch.full((3, 2), torch.nan), 2)
    with pytest.raises(ValueError, match="mask"):
        cosine_knn_adjacency(draw(3), 2, torch.ones(4, dtype=torch.bool))


def test_repr():
    assert repr(CosineKNNConv(k=3)) == "CosineKNNConv(k=3)"
