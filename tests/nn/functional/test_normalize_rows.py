import torch

from pyg_mmrec.nn.functional import normalize_rows


def test_equals_the_formula_and_has_its_gradient():
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([row / row.square().sum().sqrt() for row in x])
    torch.testing.assert_close(normalize_rows(x), expected)
    torch.testing.assert_close(normalize_rows(1e-20 * x), expected)
    assert torch.autograd.gradcheck(normalize_rows, x.requires_grad_())


def test_rows_of_zeros_stay_and_hand_their_gradient_on():
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    y = normalize_rows(x)
    assert y[0].tolist() == [0, 0]
    (grad,) = torch.autograd.grad(y, x, torch.tensor([[1.0, -2.0], [3.0, 4.0]]))
    torch.testing.assert_close(grad, torch.tensor([[1.0, -2.0], [0.0, 0.0]]))
