import math

import pytest
import torch

from pyg_mmrec.nn.losses import EmbLoss, L2Loss, emb_loss, l2_loss


@pytest.fixture
def matrices():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(rows, 3, dtype=torch.float64, generator=generator) for rows in (4, 7, 5)]


def frobenius_squared(matrix):
    return sum(value * value for row in matrix.tolist() for value in row)


def test_norms_are_summed_and_divided_by_the_last_rows(matrices):
    expected = sum(math.sqrt(frobenius_squared(matrix)) for matrix in matrices) / 5
    assert emb_loss(*matrices).item() == pytest.approx(expected, rel=1e-12)
    assert EmbLoss()(*matrices).item() == pytest.approx(expected, rel=1e-12)


def test_half_the_squares_without_an_average(matrices):
    expected = sum(frobenius_squared(matrix) for matrix in matrices) / 2
    assert l2_loss(*matrices).item() == pytest.approx(expected, rel=1e-12)
    assert L2Loss()(*matrices).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("function", [emb_loss, l2_loss])
def test_gradcheck(function, matrices):
    matrices = [x.requires_grad_() for x in matrices]
    assert torch.autograd.gradcheck(function, matrices)
    assert torch.autograd.gradgradcheck(function, matrices)


@pytest.mark.parametrize("function", [emb_loss, l2_loss])
def test_gradient_at_zero_is_zero(function):
    x = torch.zeros(3, 2, requires_grad=True)
    function(x).backward()
    assert x.grad.eq(0).all()


@pytest.mark.parametrize("function", [emb_loss, l2_loss, EmbLoss(), L2Loss()])
def test_nothing_given_is_refused(function):
    with pytest.raises(ValueError, match=r"'embeddings' needs at least one matrix \(got none\)"):
        function()
