import math

import pytest
import torch
from torch.distributions import Categorical
from torch.distributions import kl_divergence as torch_kl

from pyg_mmrec.nn.losses import (
    DistillationLoss,
    js_divergence,
    kl_divergence,
    softmax_twice_divergence,
)

FUNCTIONS = [js_divergence, kl_divergence, softmax_twice_divergence]


def logits(*shape, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(2, *shape, dtype=torch.float64, generator=generator)


def slow_softmax(row):
    top = max(row)
    powers = [math.exp(value - top) for value in row]
    return [power / sum(powers) for power in powers]


def slow_kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def slow_js(x, y):
    p, q = slow_softmax(x), slow_softmax(y)
    m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return (slow_kl(p, m) + slow_kl(q, m)) / 2


def slow_softmax_twice(x, y):
    p, q = slow_softmax(x), slow_softmax(y)
    m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return (slow_kl(m, slow_softmax(p)) + slow_kl(m, slow_softmax(q))) / 2


@pytest.mark.parametrize(
    ("function", "slow"),
    [
        (js_divergence, slow_js),
        (kl_divergence, lambda x, y: slow_kl(slow_softmax(x), slow_softmax(y))),
        (softmax_twice_divergence, slow_softmax_twice),
    ],
)
def test_equals_the_formula_row_by_row(function, slow):
    x, y = logits(6, 5, scale=2.0)
    expected = [slow(a, b) for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    assert function(x, y).tolist() == pytest.approx(expected, rel=1e-10)


def test_js_and_kl_equal_torch_distributions():
    x, y = logits(3, 4, 7)
    p, q = Categorical(logits=x), Categorical(logits=y)
    m = Categorical(probs=(p.probs + q.probs) / 2)
    torch.testing.assert_close(kl_divergence(x, y), torch_kl(p, q))
    torch.testing.assert_close(js_divergence(x, y), (torch_kl(p, m) + torch_kl(q, m)) / 2)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("scale", [0.1, 3.0])
def test_gradcheck(function, scale):
    x, y = logits(3, 4, scale=scale)
    assert torch.autograd.gradcheck(function, (x.requires_grad_(), y.requires_grad_()))


def test_js_gradcheck_of_one_side_and_at_nearly_equal_inputs():
    x, y = logits(3, 4)
    assert torch.autograd.gradcheck(lambda x: js_divergence(x, y), x.requires_grad_())
    near = (x + 1e-3 * y).detach().requires_grad_()
    assert torch.autograd.gradcheck(js_divergence, (x, near))


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_js_is_symmetric_and_bounded(scale):
    x, y = logits(200, 6, scale=scale)
    js = js_divergence(x, y)
    torch.testing.assert_close(js_divergence(y, x), js)
    assert js.min() > 0 and js.max() <= math.log(2) + 1e-12
    # Softmax forgets a shift of all channels, and their order does not matter.
    torch.testing.assert_close(js_divergence(x + 5, y - 2), js)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(js_divergence(x[:, order], y[:, order]), js)


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_kl_is_positive_and_forgets_shifts_and_the_order_of_channels(scale):
    x, y = logits(200, 6, scale=scale)
    kl = kl_divergence(x, y)
    assert kl.min() > 0
    torch.testing.assert_close(kl_divergence(x + 5, y - 2), kl)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(kl_divergence(x[:, order], y[:, order]), kl)
    assert not torch.isclose(kl_divergence(x, y[:, order]), kl).all()


@pytest.mark.parametrize("function", [js_divergence, kl_divergence])
def test_zero_with_zero_gradient_at_equality(function):
    x = logits(5, 8)[0].float().requires_grad_()
    y = x.detach().clone().requires_grad_()
    value = function(x, y)
    assert value.eq(0).all()
    value.sum().backward()
    torch.testing.assert_close(x.grad, torch.zeros_like(x), atol=1e-7, rtol=0)
    torch.testing.assert_close(y.grad, torch.zeros_like(y), atol=1e-7, rtol=0)


def test_js_of_disjoint_distributions_is_ln_2():
    x = torch.tensor([[60.0, 0.0]], dtype=torch.float64)
    assert js_divergence(x, x.flip(1)).item() == pytest.approx(math.log(2), rel=1e-12)


@pytest.mark.parametrize("gap", [1e-2, 1e-3, 1e-4])
def test_js_is_exact_in_float32_for_nearly_equal_inputs(gap):
    x, noise = logits(50, 64)
    x = x.float()
    y = (x + gap * noise).float()
    exact = js_divergence(x.double(), y.double())
    # Far below the square of float32's resolution of p and q, where logarithms would fail.
    assert exact.max() < gap**2
    torch.testing.assert_close(js_divergence(x, y).double(), exact, rtol=3e-6 / gap, atol=0)


@pytest.mark.parametrize("gap", [1e-1, 1e-2, 1e-3, 1e-4])
def test_kl_is_exact_in_float32_for_nearly_equal_inputs(gap):
    x, noise = logits(200, 64)
    x, y = x.float().requires_grad_(), (x + gap * noise).float().requires_grad_()
    p, q = (Categorical(logits=z.double()) for z in (x, y))
    exact, found = torch_kl(p, q), kl_divergence(x, y)
    assert found.min() > 0
    torch.testing.assert_close(found.double(), exact, rtol=5e-7 / gap, atol=0)
    wanted = torch.autograd.grad(exact.sum(), (x, y))
    for one, other in zip(torch.autograd.grad(found.sum(), (x, y)), wanted, strict=True):
        assert (one - other).norm() < 3e-7 / gap * other.norm()


@pytest.mark.parametrize("scale", [1e-2, 1.0, 10.0, 200.0])
def test_kl_equals_the_plain_formula_with_its_gradients(scale):
    x, y = (z.requires_grad_() for z in logits(100, 6, scale=scale))
    log_p, log_q = x.log_softmax(-1), y.log_softmax(-1)
    plain, found = (log_p.exp() * (log_p - log_q)).sum(-1), kl_divergence(x, y)
    torch.testing.assert_close(found, plain, rtol=1e-9, atol=1e-12)
    wanted = torch.autograd.grad(plain.sum(), (x, y))
    torch.testing.assert_close(torch.autograd.grad(found.sum(), (x, y)), wanted)
    single = [z.detach().float().requires_grad_() for z in (x, y)]
    found = kl_divergence(*single)
    torch.testing.assert_close(found.double(), plain, rtol=1e-4, atol=1e-6)
    for one, other in zip(torch.autograd.grad(found.sum(), single), wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-6 * max(scale, 1))


def test_kl_gradgradcheck():
    x, y = logits(3, 4, scale=2.0)
    assert torch.autograd.gradgradcheck(kl_divergence, (x.requires_grad_(), y.requires_grad_()))


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_stay_finite(function, dtype):
    x = torch.tensor([[100.0, -100.0, 0.0], [-100.0, -100.0, 100.0], [100.0] * 3], dtype=dtype)
    y = torch.tensor([[-100.0, 100.0, 0.0], [-100.0, -100.0, 100.0], [-100.0, 0.0, 0.0]])
    x, y = x.requires_grad_(), y.to(dtype).requires_grad_()
    value = function(x, y)
    value.sum().backward()
    for tensor in (value, x.grad, y.grad):
        assert tensor.isfinite().all()
    assert value.min() >= -1e-6


def test_softmax_twice_rewards_flat_rows_even_at_equality():
    flat, peaked = torch.zeros(1, 8), torch.tensor([[5.0] + [0.0] * 7])
    assert softmax_twice_divergence(flat, flat).item() == pytest.approx(0, abs=1e-6)
    assert softmax_twice_divergence(peaked, peaked).item() > 0.5


def test_directions_follow_the_paper():
    noisy, clean = logits(4, 5)
    forward, reverse = (
        torch_kl(Categorical(logits=clean), Categorical(logits=noisy)),
        torch_kl(Categorical(logits=noisy), Categorical(logits=clean)),
    )
    assert not torch.allclose(forward, reverse)
    torch.testing.assert_close(DistillationLoss("kl")(noisy, clean), forward.mean())
    torch.testing.assert_close(DistillationLoss("reverse_kl")(noisy, clean), reverse.mean())
    torch.testing.assert_close(DistillationLoss()(noisy, clean), js_divergence(noisy, clean).mean())
    torch.testing.assert_close(
        DistillationLoss("softmax_twice")(noisy, clean),
        softmax_twice_divergence(noisy, clean).mean(),
    )


@pytest.mark.parametrize("function", FUNCTIONS)
def test_other_shapes_are_refused(function):
    with pytest.raises(ValueError, match=r"the same shape \[..., channels\] \(got \[2, 3\] and"):
        function(torch.zeros(2, 3), torch.zeros(3))
    with pytest.raises(ValueError, match="same shape"):
        function(torch.tensor(1.0), torch.tensor(1.0))


def test_unknown_divergence_is_refused():
    with pytest.raises(ValueError, match=r"'divergence' needs to be one of .*'js'.*got 'jsd'"):
        DistillationLoss("jsd")
