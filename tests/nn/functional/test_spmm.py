import pytest
import torch

from pyg_mmrec.data import Adjacency
from pyg_mmrec.nn.functional import sddmm, spmm


def random_graph(num_sources=7, num_targets=5, num_edges=18, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randperm(num_sources * num_targets, generator=generator)[:num_edges]
    edge_index = torch.stack([pairs // num_targets, pairs % num_targets])
    weight = torch.randn(num_edges, dtype=dtype, generator=generator)
    dense = torch.zeros(num_targets, num_sources, dtype=dtype)
    dense[edge_index[1], edge_index[0]] = weight
    return edge_index, weight, dense


def test_product_and_gradients_equal_dense():
    edge_index, weight, dense = random_graph()
    adjacency = Adjacency.from_edge_index(edge_index, weight, size=(7, 5))
    x = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(spmm(adjacency, x), dense @ x)
    grad = torch.randn(5, 3, dtype=torch.float64)
    (ours,) = torch.autograd.grad(spmm(adjacency, x), x, grad)
    torch.testing.assert_close(ours, dense.t() @ grad)


def test_gradcheck_of_features_and_weights_to_second_order():
    edge_index, weight, _ = random_graph()
    structure = Adjacency.from_edge_index(edge_index, weight, size=(7, 5))
    x = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    weight = structure.weight.clone().requires_grad_()

    def product(x, weight):
        return spmm(structure.with_weight(weight), x)

    assert torch.autograd.gradcheck(product, (x, weight))
    assert torch.autograd.gradgradcheck(product, (x, weight))


def test_base_and_factor_in_the_same_pass():
    edge_index, weight, dense = random_graph()
    adjacency = Adjacency.from_edge_index(edge_index, weight, size=(7, 5))
    x = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    base = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(spmm(adjacency, x, base, 0.3), 0.3 * (base + dense @ x))
    assert torch.autograd.gradcheck(lambda x, base: spmm(adjacency, x, base, 0.3), (x, base))
    with pytest.raises(ValueError, match="one row per target"):
        spmm(adjacency, x, base[:4])


def test_empty_rows_and_empty_graph():
    adjacency = Adjacency.from_edge_index(torch.tensor([[0], [2]]), size=(2, 4))
    x = torch.ones(2, 3, requires_grad=True)
    out = spmm(adjacency, x)
    assert out.tolist() == [[0.0] * 3, [0.0] * 3, [1.0] * 3, [0.0] * 3]
    out.sum().backward()
    assert x.grad.tolist() == [[1.0] * 3, [0.0] * 3]
    empty = Adjacency.from_edge_index(torch.empty(2, 0, dtype=torch.long), size=(2, 4))
    assert spmm(empty, x).eq(0).all()


def test_one_operator_without_graph_break_under_compile():
    edge_index, weight, dense = random_graph(dtype=torch.float32)
    adjacency = Adjacency.from_edge_index(edge_index, weight, size=(7, 5))
    x = torch.randn(7, 3, requires_grad=True)
    compiled = torch.compile(
        lambda adjacency, x: spmm(adjacency, x * 2).sum(), backend="aot_eager", fullgraph=True
    )
    compiled(adjacency, x).backward()
    torch.testing.assert_close(x.grad, 2 * dense.sum(0)[:, None].expand(7, 3))


def test_registered_operators_follow_their_contract():
    edge_index, weight, _ = random_graph()
    a = Adjacency.from_edge_index(edge_index, weight, size=(7, 5))
    x = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    fields = (a.rowptr, a.col, a.weight, a.perm, a.rowptr_t, a.col_t, a.weight_t, a.perm_t)
    torch.library.opcheck(torch.ops.pyg_mmrec.spmm, (*fields, x, None, 1.0))
    left = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    structure = (a.rowptr, a.col, a.perm, a.rowptr_t, a.col_t, a.perm_t)
    torch.library.opcheck(torch.ops.pyg_mmrec.sddmm, (*structure, left, x))


def test_bad_features_are_refused():
    adjacency = Adjacency.from_edge_index(torch.tensor([[0], [2]]), size=(2, 4))
    with pytest.raises(ValueError, match=r"one row per source, shape \[2, channels\]"):
        spmm(adjacency, torch.ones(4, 3))
    with pytest.raises(ValueError, match=r"needs to hold floating-point numbers \(got torch.int64"):
        spmm(adjacency, torch.ones(2, 4, dtype=torch.long))
    with pytest.raises(ValueError, match=r"'base' needs the type of 'x', torch.float32 \(got .*64"):
        spmm(adjacency, torch.ones(2, 4), torch.ones(4, 4, dtype=torch.float64))


def test_rows_without_edges_are_zero_whatever_the_memory_held():
    adjacency = Adjacency.from_edge_index(torch.tensor([[0], [1]]), size=(2, 4000))
    none = Adjacency.from_edge_index(torch.empty(2, 0, dtype=torch.long), size=(2, 4000))
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for graph in (adjacency, none):
            used = torch.full((4000, 8), float("nan"), dtype=dtype)
            del used  # the next tensor of this size gets its memory
            out = spmm(graph, torch.ones(2, 8, dtype=dtype))
            assert out.sum() == 8 * graph.num_edges and out.dtype == dtype


def test_second_order_through_learned_weights_of_a_symmetric_graph():
    edge_index = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    found = []
    for symmetric in (True, False):
        weight = torch.tensor([0.5, 0.5, 2.0, 2.0], dtype=torch.float64, requires_grad=True)
        adjacency = Adjacency.from_edge_index(edge_index, weight, (3, 3), symmetric)
        x = torch.tensor([[1.0], [2.0], [5.0]], dtype=torch.float64, requires_grad=True)
        (grad,) = torch.autograd.grad(spmm(adjacency, x).square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(grad[0].sum(), weight)[0])
    assert torch.equal(*found)


def test_inner_products_of_edges_and_their_gradients():
    edge_index, weight, _ = random_graph()
    adjacency = Adjacency.from_edge_index(edge_index, weight, size=(7, 5))
    generator = torch.Generator().manual_seed(1)
    target = torch.randn(5, 3, dtype=torch.float64, generator=generator).requires_grad_()
    source = torch.randn(7, 3, dtype=torch.float64, generator=generator).requires_grad_()
    j, i = adjacency.edge_index
    torch.testing.assert_close(sddmm(adjacency, target, source), (target[i] * source[j]).sum(1))
    assert torch.autograd.gradcheck(lambda *x: sddmm(adjacency, *x), (target, source))
    assert torch.autograd.gradgradcheck(lambda *x: sddmm(adjacency, *x), (target, source))
    none = Adjacency.from_edge_index(torch.empty(2, 0, dtype=torch.long), size=(7, 5))
    assert sddmm(none, target, source).shape == (0,)


def test_bad_ends_of_edges_are_refused():
    adjacency = Adjacency.from_edge_index(torch.tensor([[0], [2]]), size=(2, 4))
    with pytest.raises(ValueError, match=r"'left' needs one floating-point row per target, .*\[4,"):
        sddmm(adjacency, torch.ones(2, 3), torch.ones(4, 3))
    with pytest.raises(ValueError, match=r"'left' needs .* \(got torch.int64 \[4, 3\]\)"):
        sddmm(adjacency, torch.ones(4, 3).long(), torch.ones(2, 3).long())
    with pytest.raises(ValueError, match=r"'right' needs .*float32 of shape \[2, 3\] \(got .*64"):
        sddmm(adjacency, torch.ones(4, 3), torch.ones(2, 3).double())
    with pytest.raises(ValueError, match=r"'right' needs .* \(got torch.float32 \[2, 5\]\)"):
        sddmm(adjacency, torch.ones(4, 3), torch.ones(2, 5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_learned_weights_and_inner_products_in_half_precision(dtype):
    edge_index, weight, _ = random_graph(dtype=torch.float32)
    structure = Adjacency.from_edge_index(edge_index, weight, size=(7, 5))
    generator = torch.Generator().manual_seed(1)
    weight, *ends = (
        torch.randn(shape, generator=generator).to(dtype) for shape in (18, (5, 3), (7, 3), (5, 3))
    )

    def run(weight, target, source, upstream):
        score = sddmm(structure, target, source)
        out = spmm(structure.with_weight(weight), source)
        grads = torch.autograd.grad((out, score), (weight, target, source), (upstream, weight))
        return score, out, *grads

    found = run(*(x.clone().requires_grad_() for x in (weight, *ends)))
    wanted = run(*(x.float().requires_grad_() for x in (weight, *ends)))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other.to(dtype), rtol=2e-2, atol=2e-2)
