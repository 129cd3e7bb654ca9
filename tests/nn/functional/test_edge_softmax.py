import pytest
import torch

from pyg_mmrec.nn.functional import edge_softmax

TARGET = torch.tensor([0, 3, 3, 1, 0, 3, 1])  # no edge enters 2 or 4
MASK = torch.tensor([True, False, True, False, True, True, False])  # none enters 1 either


@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize("scale", [1.0, 500.0])
def test_equals_softmax_of_each_target(mask, scale):
    generator = torch.Generator().manual_seed(0)
    score = scale * torch.randn(7, dtype=torch.float64, generator=generator)
    found = edge_softmax(score, TARGET, 5, mask)
    expected = torch.zeros_like(score)
    for i in range(5):
        edges = (TARGET == i) if mask is None else (TARGET == i) & mask
        expected[edges] = score[edges].softmax(0)
    torch.testing.assert_close(found, expected)


def test_a_masked_edge_matters_to_none_however_high_its_score():
    score = torch.tensor([0.0, 1e4, 0.0, 1e4, 0.0, 0.0, 1e4], requires_grad=True)
    found = edge_softmax(score, TARGET, mask=MASK)
    assert found.tolist() == [0.5, 0, 0.5, 0, 0.5, 0.5, 0]
    found.square().sum().backward()
    assert score.grad.isfinite().all() and score.grad[~MASK].eq(0).all()


@pytest.mark.parametrize("mask", [None, MASK])
def test_gradcheck_to_second_order(mask):
    generator = torch.Generator().manual_seed(0)
    score = torch.randn(7, dtype=torch.float64, generator=generator).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: edge_softmax(s, TARGET, 5, mask), score)
    assert torch.autograd.gradgradcheck(lambda s: edge_softmax(s, TARGET, 5, mask), score)


@pytest.mark.parametrize("mask", [None, MASK])
def test_compiles_without_graph_break(mask):
    score = torch.randn(7, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(edge_softmax, backend="aot_eager", fullgraph=True)
    expected = edge_softmax(score, TARGET, 5, mask)
    torch.testing.assert_close(compiled(score, TARGET, 5, mask), expected)


@pytest.mark.parametrize("mask", [MASK[:3], MASK.float()])
def test_bad_masks_are_refused(mask):
    with pytest.raises(ValueError, match=r"'mask' needs one boolean mark per edge, shape \[7\]"):
        edge_softmax(torch.ones(7), TARGET, 5, mask)
