import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from pyg_mmrec.nn.losses import BottleneckRate, NormalKLRate, bottleneck_rate, normal_kl_rate


@pytest.fixture
def hidden_and_scale():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(6, 5, dtype=torch.float64, generator=generator)
    scale = torch.rand(6, 1, dtype=torch.float64, generator=generator) * 0.9 + 0.05
    return hidden, scale


@pytest.mark.parametrize("prior", [0.3, 0.5, 1.0])
def test_theorem_3_1_the_rate_is_a_kl_of_gaussians(hidden_and_scale, prior):
    hidden, variance = hidden_and_scale
    noisy = Independent(Normal(hidden, variance.sqrt().expand_as(hidden)), 1)
    target = Independent(Normal(torch.zeros_like(hidden), torch.full_like(hidden, prior**0.5)), 1)
    expected = kl_divergence(noisy, target).mean()
    weights = {"hidden_weight": 1 / (2 * prior), "scale_weight": 5 / 2}
    torch.testing.assert_close(bottleneck_rate(hidden, variance, prior, **weights), expected)
    torch.testing.assert_close(BottleneckRate(prior, **weights)(hidden, variance), expected)


@pytest.mark.parametrize("prior", [0.3, 0.5, 0.7])
def test_theorem_3_2_without_hidden_weight_the_minimum_is_the_prior(hidden_and_scale, prior):
    hidden, _ = hidden_and_scale
    grid = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    rates = torch.stack(
        [bottleneck_rate(hidden, phi.expand(6, 1), prior, hidden_weight=0.0) for phi in grid]
    )
    assert grid[rates.argmin()].item() == pytest.approx(prior, abs=1e-9)
    assert rates.min().item() == pytest.approx(0, abs=1e-12)
    at_prior = torch.tensor([[prior]], dtype=torch.float64, requires_grad=True)
    bottleneck_rate(hidden, at_prior.expand(6, 1), prior, hidden_weight=0.0).backward()
    assert at_prior.grad.item() == pytest.approx(0, abs=1e-12)


def test_rate_equals_equation_13_row_by_row(hidden_and_scale):
    hidden, scale = hidden_and_scale
    expected = 0.0
    for row, phi in zip(hidden, scale.squeeze(1), strict=True):
        ratio = phi / 0.4
        expected += 2.0 * row.square().sum() + 3.0 * (ratio - ratio.log() - 1)
    torch.testing.assert_close(bottleneck_rate(hidden, scale, 0.4, 2.0, 3.0), expected / 6)
    defaults = BottleneckRate()(hidden, scale)
    torch.testing.assert_close(defaults, bottleneck_rate(hidden, scale, 0.5, 1.0, 1.0))


@pytest.mark.parametrize("rate", [bottleneck_rate, normal_kl_rate])
def test_shapes_and_priors_that_do_not_fit_are_refused(rate, hidden_and_scale):
    hidden, scale = hidden_and_scale
    for wrong in (scale[1:], scale.squeeze(1), scale.t()):
        with pytest.raises(ValueError, match=r"'hidden' and 'scale' need shapes \[rows, channels"):
            rate(hidden, wrong)
    with pytest.raises(ValueError, match=r"'prior_(scale|std)' needs to be positive \(got 0.0\)"):
        rate(hidden, scale, 0.0)


def test_normal_kl_equals_torch_distributions(hidden_and_scale):
    hidden, std = hidden_and_scale
    noisy = Normal(hidden, std.expand_as(hidden))
    target = Normal(torch.zeros_like(hidden), torch.full_like(hidden, 0.5))
    expected = kl_divergence(noisy, target).mean()
    torch.testing.assert_close(normal_kl_rate(hidden, std), expected)
    torch.testing.assert_close(NormalKLRate(0.5)(hidden, std), expected)


@pytest.mark.parametrize("rate", [BottleneckRate(0.3, 0.5, 2.0), NormalKLRate(0.7)])
def test_gradcheck(hidden_and_scale, rate):
    hidden, scale = hidden_and_scale
    assert torch.autograd.gradcheck(rate, (hidden.requires_grad_(), scale.requires_grad_()))


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_priors_that_are_not_positive_are_refused(value):
    with pytest.raises(ValueError, match="'prior_scale' needs to be positive"):
        BottleneckRate(value)
    with pytest.raises(ValueError, match="'prior_std' needs to be positive"):
        NormalKLRate(value)


@pytest.mark.parametrize("rate", [bottleneck_rate, normal_kl_rate])
def test_unknown_reductions_are_refused(hidden_and_scale, rate):
    with pytest.raises(ValueError, match="'reduction' needs to be one of"):
        rate(*hidden_and_scale, reduction="sum")
