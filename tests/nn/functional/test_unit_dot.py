import pytest
import torch

from pyg_mmrec.nn.functional import unit_dot


def random(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(shape))
    return torch.randn(2, *shape, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("shape", [(5, 3), (2, 4, 3), (3,)])
def test_equals_the_cosine_times_the_length_of_the_target(shape):
    x, target = random(*shape)
    expected = torch.cosine_similarity(x, target, dim=-1) * target.norm(dim=-1)
    torch.testing.assert_close(unit_dot(x, target), expected)
    torch.testing.assert_close(unit_dot(1e-20 * x, target), expected)
    assert torch.autograd.gradcheck(unit_dot, (x.requires_grad_(), target))


def test_a_row_of_zeros_has_the_target_as_gradient():
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    target = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    dot = unit_dot(x, target)
    torch.testing.assert_close(dot, torch.tensor([0.0, 5.0]))
    (grad,) = torch.autograd.grad(dot.sum(), x)
    torch.testing.assert_close(grad, torch.tensor([[1.0, -2.0], [0.0, 0.0]]))


def test_refuses_other_shapes_and_targets_that_learn():
    x, target = random(4, 3)
    with pytest.raises(ValueError, match=r"same shape \(got \[4, 3\] and \[3\]\)"):
        unit_dot(x, target[0])
    with pytest.raises(ValueError, match="'target' needs to be constant"):
        unit_dot(x, target.requires_grad_())
