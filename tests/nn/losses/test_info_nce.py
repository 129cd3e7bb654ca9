import math

import pytest
import torch

from pyg_mmrec.nn.losses import InfoNCELoss, info_nce


def vectors(n=6, m=4, channels=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, channels, dtype=torch.float64, generator=generator)
    y = torch.randn(m, channels, dtype=torch.float64, generator=generator)
    return x, y


def slow_info_nce(x, y, index, temperature):
    def cosine(a, b):
        dot = sum(p * q for p, q in zip(a, b, strict=True))
        return dot / math.sqrt(sum(p * p for p in a) * sum(q * q for q in b))

    total = 0.0
    for anchor, positive in zip(x.tolist(), index, strict=True):
        powers = [math.exp(cosine(anchor, other) / temperature) for other in y.tolist()]
        total -= math.log(powers[positive] / sum(powers))
    return total / len(index)


@pytest.mark.parametrize("temperature", [0.1, 0.2, 3.0])
@pytest.mark.parametrize("index", [[0, 1, 2, 3, 2, 1], [3, 3, 3, 0, 0, 3]])
def test_equals_the_formula(index, temperature):
    x, y = vectors()
    value = info_nce(x, y, torch.tensor(index), temperature)
    assert value.shape == ()
    assert value.item() == pytest.approx(slow_info_nce(x, y, index, temperature), rel=1e-10)
    assert InfoNCELoss(temperature)(x, y, torch.tensor(index)) == value


def test_rows_of_the_same_number_belong_together_by_default():
    x, y = vectors(4)
    expected = slow_info_nce(x, y, [0, 1, 2, 3], 0.2)
    assert info_nce(x, y).item() == pytest.approx(expected, rel=1e-10)
    assert InfoNCELoss()(x, y) == info_nce(x, y) == info_nce(x, y, torch.arange(4), 0.2)


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_orthonormal_rows_in_closed_form(temperature):
    x = torch.eye(5, dtype=torch.float64)
    high = math.exp(1 / temperature)
    right = math.log(high + 4) - 1 / temperature
    assert info_nce(x, x, temperature=temperature).item() == pytest.approx(right, rel=1e-12)
    wrong = math.log(high + 4)
    value = info_nce(x, x, torch.tensor([1, 2, 3, 4, 0]), temperature)
    assert value.item() == pytest.approx(wrong, rel=1e-12)


def test_equal_candidates_cost_their_logarithm_and_one_costs_nothing():
    x, y = vectors()
    index = torch.tensor([0, 1, 2, 3, 0, 0])
    assert info_nce(x, y[:1].expand(4, -1), index).item() == pytest.approx(math.log(4), rel=1e-12)
    assert info_nce(x, y[:1], torch.zeros(6, dtype=torch.long)).item() == 0


@pytest.mark.parametrize("temperature", [0.05, 0.2, 3.0])
def test_is_never_negative(temperature):
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    assert info_nce(x, x, temperature=temperature) >= 0  # also where every pair is the best
    assert info_nce(x, -x, temperature=temperature) > math.log(50)


def test_invariances():
    generator = torch.Generator().manual_seed(1)
    x, y = vectors()
    index = torch.tensor([0, 1, 2, 3, 2, 1])
    expected = info_nce(x, y, index)
    order = torch.randperm(4, generator=generator)
    torch.testing.assert_close(info_nce(x, y[order], order.argsort()[index]), expected)
    assert not torch.isclose(info_nce(x, y[order], index), expected)
    order = torch.randperm(6, generator=generator)
    torch.testing.assert_close(info_nce(x[order], y, index[order]), expected)
    lengths = torch.rand(6, 1, dtype=x.dtype, generator=generator) + 0.1
    torch.testing.assert_close(info_nce(lengths * x, lengths[:4] * y, index), expected)
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=x.dtype, generator=generator))[0]
    torch.testing.assert_close(info_nce(x @ rotation, y @ rotation, index), expected)


def test_gradcheck():
    x, y = (z.requires_grad_() for z in vectors())
    index = torch.tensor([0, 1, 2, 3, 2, 1])
    assert torch.autograd.gradcheck(lambda x, y: info_nce(x, y, index), (x, y))
    assert torch.autograd.gradcheck(lambda x: info_nce(x, y.detach(), index), x)
    assert torch.autograd.gradcheck(lambda x: info_nce(x, x, temperature=1.0), x)


def test_rows_of_zeros_and_a_low_temperature_stay_finite():
    x, y = (z.float() for z in vectors(4))
    x[0], y[1] = 0, 0
    value = info_nce(x.requires_grad_(), y.requires_grad_(), temperature=1e-3)
    value.backward()
    for tensor in (value, x.grad, y.grad):
        assert tensor.isfinite().all()


def test_gradient_descent_brings_pairs_together():
    x, y = vectors(4)
    x.requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.1)
    for _ in range(50):
        optimizer.zero_grad()
        info_nce(x, y).backward()
        optimizer.step()
    similarity = torch.cosine_similarity(x[:, None], y[None], dim=2)
    assert similarity.argmax(1).tolist() == [0, 1, 2, 3]


def test_no_graph_break_under_compile():
    x, y = vectors()
    index = torch.tensor([0, 1, 2, 3, 2, 1])
    x.requires_grad_()
    compiled = torch.compile(InfoNCELoss(), backend="aot_eager", fullgraph=True, dynamic=False)
    value = compiled(x, y, index)
    expected = info_nce(x, y, index)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, x), torch.autograd.grad(expected, x))


@pytest.mark.parametrize("shapes", [((3, 2), (3, 4)), ((3,), (3, 3)), ((3, 2), (3, 2, 2))])
def test_shapes_that_do_not_fit_are_refused(shapes):
    x, y = (torch.ones(shape) for shape in shapes)
    with pytest.raises(ValueError, match=r"\[n, channels\] and \[m, channels\] \(got \[3"):
        info_nce(x, y)


def test_an_index_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="'index' is needed for 6 anchors and 4 candidates"):
        info_nce(*vectors())
    with pytest.raises(ValueError, match=r"per anchor, shape \[6\] \(got \[4\]\)"):
        info_nce(*vectors(), torch.arange(4))
    with pytest.raises(ValueError, match=r"per anchor, shape \[6\] \(got \[6, 4\]\)"):
        info_nce(*vectors(), torch.ones(6, 4))


@pytest.mark.parametrize("temperature", [0, -0.2, math.nan])
def test_temperature_needs_to_be_positive(temperature):
    match = rf"'temperature' needs to be positive \(got {temperature}\)"
    with pytest.raises(ValueError, match=match):
        info_nce(torch.eye(2), torch.eye(2), temperature=temperature)
    with pytest.raises(ValueError, match=match):
        InfoNCELoss(temperature)
