import math

import pytest
import torch

from pyg_mmrec.nn.noise import AdaptiveNoise, ConstantNoise


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def hidden():
    return torch.randn(2000, 16, generator=seeded())


def moments(delta):
    """Mean, standard deviation and kurtosis, over 32,000 draws: exact to about 1 %."""
    delta = delta.double()
    std = delta.std()
    return delta.mean().item(), std.item(), ((delta / std) ** 4).mean().item()


@pytest.mark.parametrize(("kind", "kurtosis"), [("gaussian", 3.0), ("uniform", 1.8)])
@pytest.mark.parametrize("std", [1e-3, 0.5])
def test_constant_noise_has_the_moments_of_its_kind(hidden, kind, kurtosis, std):
    delta = ConstantNoise(kind, std)(hidden, seeded(1))
    mean, found, fourth = moments(delta)
    assert abs(mean) < 0.03 * std
    assert found == pytest.approx(std, rel=0.02)
    assert fourth == pytest.approx(kurtosis, rel=0.05)
    if kind == "uniform":
        assert delta.abs().max() <= math.sqrt(3) * std * (1 + 1e-6)
        assert delta.abs().max() > math.sqrt(3) * std * 0.999


def test_constant_dropout_drops_or_rescales(hidden):
    noisy = hidden + ConstantNoise("dropout", dropout_rate=0.25)(hidden, seeded(1))
    dropped = noisy.abs() < 1e-6
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.01)
    torch.testing.assert_close(noisy[~dropped], hidden[~dropped] / 0.75)
    assert ConstantNoise("dropout", dropout_rate=0.0)(hidden).eq(0).all()


@pytest.mark.parametrize("kind", ["gaussian", "uniform"])
def test_constant_noise_of_no_strength_is_zero_and_noise_ignores_the_values(hidden, kind):
    assert ConstantNoise(kind, std=0.0)(hidden).eq(0).all()
    noise = ConstantNoise(kind, 0.1)
    assert torch.equal(noise(hidden, seeded(2)), noise(100 * hidden, seeded(2)))


def test_constant_noise_has_no_gradient_but_for_dropout(hidden):
    hidden.requires_grad_()
    for kind in ("gaussian", "uniform"):
        assert not ConstantNoise(kind)(hidden).requires_grad
    delta = ConstantNoise("dropout", dropout_rate=0.25)(hidden, seeded(3))
    delta.sum().backward()
    torch.testing.assert_close(hidden.grad * hidden.detach(), delta.detach())


@pytest.mark.parametrize("kind", ["gaussian", "uniform", "dropout"])
@pytest.mark.parametrize("make", [ConstantNoise, lambda kind: AdaptiveNoise(16, kind)])
def test_a_generator_reproduces_draws_and_leaves_the_global_one(hidden, kind, make):
    noise = make(kind)

    def draw(generator=None):
        drawn = noise(hidden, generator)
        return drawn[0] if isinstance(drawn, tuple) else drawn

    state = torch.get_rng_state()
    one, two, other = draw(seeded(5)), draw(seeded(5)), draw(seeded(6))
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(7)
    first = draw()
    assert not torch.equal(draw(), first)
    torch.manual_seed(7)
    assert torch.equal(draw(), first)


@pytest.mark.parametrize("kind", ["gaussian", "uniform", "dropout"])
def test_strength_is_one_number_between_0_and_1_per_row(hidden, kind):
    torch.manual_seed(0)
    delta, phi = AdaptiveNoise(16, kind)(10 * hidden)
    assert delta.shape == hidden.shape and phi.shape == (2000, 1)
    assert phi.min() > 0 and phi.max() < 1 and phi.std() > 0


@pytest.mark.parametrize("kind", ["gaussian", "uniform"])
@pytest.mark.parametrize("scale", ["std", "variance"])
def test_strength_is_read_as_the_scale_says(hidden, kind, scale):
    torch.manual_seed(0)
    noise = AdaptiveNoise(16, kind, scale)
    noise.net[4].bias.data.fill_(-1.5)  # away from 1/2, where both readings are close
    delta, phi = noise(hidden, seeded(1))
    strength = phi if scale == "std" else phi.sqrt()
    mean, std, fourth = moments(delta / strength)
    assert abs(mean) < 0.03 and std == pytest.approx(1, rel=0.02)
    assert fourth == pytest.approx(3.0 if kind == "gaussian" else 1.8, rel=0.05)


def test_network_is_three_layers_with_sigmoid(hidden):
    torch.manual_seed(0)
    noise = AdaptiveNoise(16, hidden_channels=(7, 5))
    weights = dict(noise.named_parameters())
    shapes = [list(w.shape) for w in weights.values()]
    assert shapes == [[7, 16], [7], [5, 7], [5], [1, 5], [1]]
    w1, b1, w2, b2, w3, b3 = weights.values()
    row = hidden[3]
    expected = torch.sigmoid(w3 @ (w2 @ (w1 @ row + b1).clamp(min=0) + b2).clamp(min=0) + b3)
    torch.testing.assert_close(noise(hidden)[1][3], expected)
    assert [w.shape[0] for w in AdaptiveNoise(16).parameters()] == [8, 8, 8, 8, 1, 1]
    assert [w.shape[0] for w in AdaptiveNoise(1).parameters()] == [1] * 6
    before = w1.clone()
    noise.reset_parameters()
    assert not torch.equal(w1, before)


@pytest.mark.parametrize("scale", ["std", "variance"])
def test_gradient_of_adaptive_noise(hidden, scale):
    torch.manual_seed(0)
    noise = AdaptiveNoise(4, scale=scale).double()
    rows = hidden[:6, :4].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda rows: noise(rows, seeded(1)), rows)


def test_adaptive_dropout_drops_at_the_rate_of_each_row(hidden):
    torch.manual_seed(0)
    noise = AdaptiveNoise(16, "dropout")
    noise.net[4].weight.data.mul_(20)
    delta, phi = noise(hidden, seeded(1))
    dropped = (hidden + delta).abs() < 1e-6
    low, high = phi.squeeze(1) < 0.4, phi.squeeze(1) > 0.6
    assert low.sum() > 100 and high.sum() > 100
    for rows in (low, high):
        share = dropped[rows].float().mean().item()
        assert share == pytest.approx(phi[rows].mean().item(), abs=0.02)
    kept = hidden / (1 - phi)
    torch.testing.assert_close((hidden + delta)[~dropped], kept[~dropped], rtol=1e-4, atol=1e-5)


def test_adaptive_dropout_is_straight_through(hidden):
    torch.manual_seed(0)
    noise = AdaptiveNoise(16, "dropout")
    rows = hidden[:50]
    delta, phi = noise(rows, seeded(1))
    weight = torch.randn(50, 16, generator=seeded(2))
    (grad,) = torch.autograd.grad((weight * delta).sum(), phi, retain_graph=True)
    # Backward takes the kept share to be 1 - phi, at the rescaling of the forward pass.
    expected = -(weight * rows / (1 - phi)).sum(1, keepdim=True)
    torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-5)
    assert all(
        g.abs().sum() > 0 for g in torch.autograd.grad(delta.square().sum(), noise.parameters())
    )


def test_adaptive_dropout_at_a_rate_that_rounds_to_1_drops_all(hidden):
    noise = AdaptiveNoise(16, "dropout")
    noise.net[4].bias.data.fill_(100.0)
    rows = hidden[:20].clone().requires_grad_()
    delta, phi = noise(rows)
    assert phi.eq(1).all()
    torch.testing.assert_close(delta, -rows)
    delta.sum().backward()
    assert all(p.grad.isfinite().all() for p in noise.parameters()) and rows.grad.isfinite().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConstantNoise("normal"), r"'kind' needs to be one of \['gaussian', .*'normal'"),
        (lambda: ConstantNoise(std=-1.0), r"'std' needs to be a number of 0 or more \(got -1.0\)"),
        (lambda: ConstantNoise(std=float("nan")), "'std' needs to be a number of 0 or more"),
        (lambda: ConstantNoise("dropout", dropout_rate=1.0), r"'dropout_rate' .* \[0, 1\)"),
        (lambda: AdaptiveNoise(4, "normal"), "'kind' needs to be one of"),
        (lambda: AdaptiveNoise(4, scale="sigma"), "'scale' needs to be one of"),
        (lambda: AdaptiveNoise(0), r"need to be positive \(got 0 and \[1, 1\]\)"),
        (lambda: AdaptiveNoise(4, hidden_channels=(3, 0)), r"got 4 and \[3, 0\]"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_rows_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"needs rows of 8 channels \(got shape \[3, 9\]\)"):
        AdaptiveNoise(8)(torch.zeros(3, 9))
