import json
import math
from itertools import combinations, permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyg_mmrec.nn.losses import HSICLoss, KernelRows, hsic, median_variance, rbf_kernel

OPTIONS = [
    pytest.param(variance, normalize, id=f"variance={variance},normalize={normalize}")
    for variance in (0.25, 1.5, None)
    for normalize in (True, False)
]


def vectors(n=7, channels=4, other_channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, channels, dtype=torch.float64, generator=generator)
    y = torch.randn(n, other_channels, dtype=torch.float64, generator=generator)
    return x, y + 0.5 * x[:, :1]


def slow_kernel(x, variance, normalize):
    if normalize:
        x = torch.stack([row / math.sqrt(sum(v * v for v in row.tolist())) for row in x])
    n = len(x)
    squared = [[((x[i] - x[j]) ** 2).sum().item() for j in range(n)] for i in range(n)]
    if variance is None:
        pairs = sorted(squared[i][j] for i, j in combinations(range(n), 2))
        variance = pairs[(len(pairs) - 1) // 2] / 2
    return torch.tensor(squared, dtype=torch.float64).div(-2 * variance).exp()


def slow_biased(k_x, k_y):
    n = len(k_x)
    h = torch.eye(n, dtype=k_x.dtype) - torch.ones(n, n, dtype=k_x.dtype) / n
    return torch.trace(k_x @ h @ k_y @ h).item() / (n - 1) ** 2


def slow_unbiased(k_x, k_y):
    """Song et al., 2012: means over two, four and three different rows."""
    k_x, k_y, rows = k_x.tolist(), k_y.tolist(), range(len(k_x))
    together = [k_x[i][j] * k_y[i][j] for i, j in permutations(rows, 2)]
    apart = [k_x[i][j] * k_y[q][r] for i, j, q, r in permutations(rows, 4)]
    joined = [k_x[i][j] * k_y[i][q] for i, j, q in permutations(rows, 3)]
    first, second, third = (sum(terms) / len(terms) for terms in (together, apart, joined))
    return first + second - 2 * third


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize(("variance", "normalize"), OPTIONS)
@pytest.mark.parametrize("n", [4, 7])
def test_equals_the_formula(n, variance, normalize, unbiased):
    x, y = vectors(n)
    k_x, k_y = (slow_kernel(z, variance, normalize) for z in (x, y))
    expected = (slow_unbiased if unbiased else slow_biased)(k_x, k_y)
    value = hsic(x, y, variance, normalize, unbiased)
    assert value.shape == ()
    assert value.item() == pytest.approx(expected, rel=1e-9, abs=1e-14)
    assert HSICLoss(variance, normalize, unbiased)(x, y) == value


def test_default_is_the_biased_form_of_unit_rows_with_variance_a_quarter():
    x, y = vectors()
    assert hsic(x, y) == HSICLoss()(x, y) == hsic(x, y, 0.25, True, False)
    cosine = [torch.cosine_similarity(z[:, None], z[None], dim=2) for z in (x, y)]
    expected = slow_biased(*(((c - 1) / 0.25).exp() for c in cosine))
    assert hsic(x, y).item() == pytest.approx(expected, rel=1e-9)


def test_two_rows_in_closed_form():
    # tr(KHLH) of [[1, k], [k, 1]] and [[1, l], [l, 1]] is (1 - k) (1 - l).
    x, y = torch.eye(2, dtype=torch.float64), torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    expected = (1 - math.exp(-1 / 0.25)) * (1 - math.exp(-2 / 0.25))
    assert hsic(x, y).item() == pytest.approx(expected, rel=1e-12)


def test_median_variance():
    x = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)  # squared distances 1, 4, 9
    assert median_variance(x).item() == pytest.approx(2)
    assert median_variance(3 * x).item() == pytest.approx(18)
    assert median_variance(torch.zeros(5, 2)).item() == 1
    assert not median_variance(x.requires_grad_()).requires_grad


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(2, 12),
    seed=st.integers(0, 10_000),
    variance=st.sampled_from([0.01, 0.25, 10.0, 1e3, None]),
    normalize=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_biased_form_is_never_negative_but_by_rounding(n, seed, variance, normalize, dtype):
    x, y = vectors(n, seed=seed)
    y = y - 0.5 * x[:, :1]  # independent: there the value is smallest
    # The difference of sums of n^2 numbers in [0, 1], which are rounded, over (n - 1)^2.
    rounding = 8 * torch.finfo(dtype).eps * (n / (n - 1)) ** 2
    assert hsic(x.to(dtype), y.to(dtype), variance, normalize) >= -rounding


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize(("variance", "normalize"), OPTIONS)
def test_constant_vectors_depend_on_nothing(variance, normalize, unbiased):
    x, y = vectors()
    constant = x[:1].expand_as(x)
    for pair in ((constant, y), (y, constant), (constant, constant)):
        assert hsic(*pair, variance, normalize, unbiased).item() == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize(("variance", "normalize"), OPTIONS)
def test_invariances(variance, normalize, unbiased):
    def value(x, y):
        return hsic(x, y, variance, normalize, unbiased)

    generator = torch.Generator().manual_seed(1)
    x, y = vectors(9)
    expected = value(x, y)
    torch.testing.assert_close(value(y, x), expected)
    order = torch.randperm(9, generator=generator)
    torch.testing.assert_close(value(x[order], y[order]), expected)
    assert not torch.isclose(value(x[order], y), expected)  # pairing matters
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=x.dtype, generator=generator))[0]
    torch.testing.assert_close(value(x @ rotation, y), expected)
    padded = torch.cat([x, torch.zeros(9, 2, dtype=x.dtype)], dim=1)
    torch.testing.assert_close(value(padded, y), expected)
    lengths = torch.rand(9, 1, dtype=x.dtype, generator=generator) + 0.1
    assert torch.isclose(value(lengths * x, y), expected).item() is normalize
    assert torch.isclose(value(x + 1, y), expected).item() is not normalize
    assert torch.isclose(value(3 * x, y), expected).item() is (normalize or variance is None)


def test_unbiased_form_averages_to_zero_over_all_pairings():
    x, y = vectors(5)
    orders = [list(order) for order in permutations(range(5))]
    values = torch.stack([hsic(x, y[order], unbiased=True) for order in orders])
    assert values.abs().max() > 5e-3
    assert values.mean().item() == pytest.approx(0, abs=1e-15)
    assert torch.stack([hsic(x, y[order]) for order in orders]).mean() > 5e-3


def test_independent_samples_have_none_and_dependent_ones_some():
    generator = torch.Generator().manual_seed(0)
    independent, biased, dependent = [], [], []
    for _ in range(500):
        x = torch.randn(24, 3, dtype=torch.float64, generator=generator)
        y = torch.randn(24, 2, dtype=torch.float64, generator=generator)
        independent.append(hsic(x, y, unbiased=True))
        biased.append(hsic(x, y))
        # Same direction or the opposite one: dependent, without correlation.
        sign = torch.randint(2, (24, 1), generator=generator) * 2 - 1
        dependent.append(hsic(x, sign * x + 0.2 * y[:, :1], unbiased=True))

    def in_standard_errors(values):
        values = torch.stack(values)
        return (values.mean() / values.std() * len(values) ** 0.5).item()

    assert abs(in_standard_errors(independent)) < 3
    assert in_standard_errors(biased) > 30
    assert in_standard_errors(dependent) > 30


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize(("variance", "normalize"), [(0.25, True), (1.5, False)])
def test_gradcheck(variance, normalize, unbiased):
    def value(x, y):
        return hsic(x, y, variance, normalize, unbiased)

    x, y = vectors(6)
    alone = x.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: value(x, y), alone)
    assert torch.autograd.gradcheck(lambda x: value(y, x), alone)
    assert torch.autograd.gradcheck(lambda x: 3 * value(x, x), alone)
    assert torch.autograd.gradcheck(value, (alone, y.requires_grad_()))


def test_gradient_treats_the_median_as_a_constant():
    x, y = vectors(6)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(hsic(x, y, None, normalize=False), x)
    x_scaled = x / median_variance(x).sqrt()
    y_scaled = y / median_variance(y).sqrt()
    (expected,) = torch.autograd.grad(hsic(x_scaled, y_scaled, 1.0, normalize=False), x)
    torch.testing.assert_close(gradient, expected)


def test_only_the_side_that_needs_a_gradient_gets_one():
    x, y = vectors()
    hsic(x.requires_grad_(), y).backward()
    assert x.grad.ne(0).all() and y.grad is None


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize(("variance", "normalize"), OPTIONS)
@pytest.mark.parametrize("zeros", [1, 3, 8])
def test_rows_of_zeros_stay_finite(zeros, variance, normalize, unbiased):
    x, y = (z.float() for z in vectors(8))
    x[:zeros] = 0
    y[-zeros:] = 0
    value = hsic(x.requires_grad_(), y.requires_grad_(), variance, normalize, unbiased)
    value.backward()
    for tensor in (value, x.grad, y.grad):
        assert tensor.isfinite().all()


@pytest.mark.parametrize("unbiased", [False, True])
def test_float32_is_near_float64_for_wide_nonnegative_features(unbiased):
    x, y = vectors(200, 64, 512)
    y = y.relu() + 1  # cosines near 1, as of the features that networks give
    x.requires_grad_()
    exact = hsic(x, y, unbiased=unbiased)
    single = x.detach().float().requires_grad_()
    value = hsic(single, y.float(), unbiased=unbiased)
    torch.testing.assert_close(value.double(), exact, rtol=1e-3, atol=1e-8)
    exact.backward()
    value.backward()
    torch.testing.assert_close(
        single.grad.double(), x.grad, rtol=1e-3, atol=1e-4 * x.grad.abs().max().item()
    )


def test_gradient_descent_removes_dependence():
    x, y = vectors(40)
    x = x.requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.05)
    before = hsic(x, y).item()
    for _ in range(60):
        optimizer.zero_grad()
        hsic(x, y).backward()
        optimizer.step()
    assert hsic(x, y).item() < 0.5 * before


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("unbiased", [False, True])
def test_half_of_two_kernels_is_the_largest_thing_in_memory(both, unbiased, tmp_path):
    n, trace = 1024, tmp_path / "trace.json"
    x, y = (z.float() for z in vectors(n))
    x.requires_grad_(), y.requires_grad_(both)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        hsic(x, y, unbiased=unbiased).backward()
    profile.export_chrome_trace(str(trace))
    events = [e["args"] for e in json.loads(trace.read_text())["traceEvents"]
              if e.get("name") == "[memory]"]  # fmt: skip
    sizes = [event["Bytes"] for event in events]
    totals = [event["Total Allocated"] for event in events]
    kernel = 4 * n * n
    assert kernel / 2 < max(sizes) < 0.7 * kernel
    assert kernel < max(totals) - (totals[0] - sizes[0]) < 1.8 * kernel


@pytest.mark.parametrize(
    ("variance", "unbiased", "dynamic"),
    [(0.25, False, False), (None, True, False), (0.25, False, True)],
)
def test_no_graph_break_under_compile(variance, unbiased, dynamic):
    torch._dynamo.reset()
    loss = HSICLoss(variance, unbiased=unbiased)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for n in (7, 9):
        x, y = (z.requires_grad_() for z in vectors(n))
        expected = loss(x, y)
        value = compiled(x, y)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(
            torch.autograd.grad(value, (x, y)), torch.autograd.grad(expected, (x, y))
        )


@pytest.mark.parametrize("shapes", [((5, 2), (4, 2)), ((5,), (5, 2)), ((5, 2), (5, 2, 1))])
def test_rows_that_do_not_pair_up_are_refused(shapes):
    x, y = (torch.ones(shape) for shape in shapes)
    with pytest.raises(ValueError, match=r"shapes \[n, channels\] with the same n \(got \[5"):
        hsic(x, y)


@pytest.mark.parametrize("variance", [0.25, None])
@pytest.mark.parametrize(("n", "unbiased"), [(0, False), (1, False), (1, True), (3, True)])
def test_too_few_rows_give_zero_and_no_gradient(n, unbiased, variance):
    x, y = (z.requires_grad_() for z in vectors(n))
    value = hsic(x, y, variance, unbiased=unbiased)
    value.backward()
    assert value == 0 and x.grad.eq(0).all() and y.grad.eq(0).all()
    assert hsic(*vectors(4 if unbiased else 2), variance, unbiased=unbiased) != 0


@pytest.mark.parametrize("variance", [0, -0.25, math.nan])
def test_variance_needs_to_be_positive(variance):
    match = rf"'variance' needs to be positive \(got {variance}\)"
    with pytest.raises(ValueError, match=match):
        hsic(torch.eye(3), torch.eye(3), variance)
    with pytest.raises(ValueError, match=match):
        HSICLoss(variance)


@pytest.mark.parametrize("n", [5, 400])
def test_the_operators_keep_their_promises(n):
    x, y = (torch.randn(n, k, requires_grad=True) for k in (4, 3))
    operator = torch.ops.pyg_mmrec.kernel_sums.default
    torch.library.opcheck(operator, (x, y, None))
    kernel, rows = rbf_kernel(torch.randn(n + 2, 3)), torch.randint(n + 2, (n,))
    torch.library.opcheck(operator, (x, kernel, rows))


@pytest.mark.parametrize(("variance", "normalize"), OPTIONS)
@pytest.mark.parametrize("n", [7, 1030])  # more than one block
def test_kernel_equals_the_formula(n, variance, normalize):
    x, _ = vectors(n, seed=2)
    kernel = rbf_kernel(x.requires_grad_(), variance, normalize)
    assert kernel.shape == (n, n) and not kernel.requires_grad
    some = torch.arange(n) if n == 7 else torch.tensor([0, 5, 1023, 1024, 1029])
    if variance is not None or n == 7:  # the median is that of all
        expected = slow_kernel(x.detach()[some], variance, normalize)
        torch.testing.assert_close(kernel[some][:, some], expected, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(kernel, kernel.t(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("n", [6, 400])  # more than one block
def test_rows_of_a_kernel_stand_for_its_vectors(n, normalize, unbiased):
    x, _ = vectors(n, seed=4)
    _, all_y = vectors(n + 9, seed=5)
    rows = torch.randperm(n + 9, generator=torch.Generator().manual_seed(0))[:n]
    rows[-1] = rows[0]  # one may stand there twice
    x.requires_grad_()
    options = {"variance": 0.4, "normalize": normalize, "unbiased": unbiased}
    expected = hsic(x, all_y[rows], **options)
    given = KernelRows(rbf_kernel(all_y, 0.4, normalize), rows)
    value = HSICLoss(**options)(x, given)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    gradient, wanted = (torch.autograd.grad(v, x)[0] for v in (value, expected))
    torch.testing.assert_close(gradient, wanted, rtol=1e-8, atol=1e-12)
    assert hsic(x.float(), given, **options).dtype == torch.float64


def test_rows_that_are_none_of_the_kernel_are_refused():
    x, y = vectors(5)
    kernel, rows = rbf_kernel(y), torch.arange(5)
    with pytest.raises(ValueError, match=r"'kernel' needs shape \[N, N\] \(got \[5, 4\]\)"):
        hsic(x, KernelRows(kernel[:, :4], rows))
    for wrong in (rows[:4], rows[:, None], rows.int(), rows > 2):
        with pytest.raises(ValueError, match="'rows' needs an int64 row of the kernel for each"):
            hsic(x, KernelRows(kernel, wrong))
    for wrong in (rows - 1, rows + 1):
        with pytest.raises(ValueError, match="'rows' needs numbers from 0 to 4"):
            hsic(x, KernelRows(kernel, wrong))
    given = KernelRows(kernel.requires_grad_(), rows)  # constant all the same
    assert not hsic(x, given).requires_grad


def test_kernels_keep_their_precision_under_autocast():
    x, y = (z.float() for z in vectors(50))
    exact = rbf_kernel(y)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rbf_kernel(y), exact)
        given = KernelRows(exact, torch.arange(50))
        assert hsic(x, given) == pytest.approx(hsic(x, y).item(), rel=1e-5)


def test_types_may_differ():
    x, y = vectors(9)
    assert hsic(x.float(), y).dtype == torch.float64
    torch.testing.assert_close(hsic(x.float(), y), hsic(x, y), rtol=1e-5, atol=0)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize(
    ("variance", "normalize", "shift"), [(None, False, 1e4), (2.0, False, 1e3), (None, True, 1e3)]
)
def test_a_large_mean_costs_no_digits(variance, normalize, shift, unbiased):
    x, y = vectors(40, seed=3)
    x = x + shift
    exact = x.float().double().requires_grad_()  # the same numbers
    single = exact.detach().float().requires_grad_()
    expected = hsic(exact, y, variance, normalize, unbiased)
    value = hsic(single, y.float(), variance, normalize, unbiased)
    rtol = 1e-3 if normalize else 2e-5  # dividing by the norm has rounded already
    torch.testing.assert_close(value.double(), expected, rtol=rtol, atol=0)
    gradients = [torch.autograd.grad(*pair)[0] for pair in ((value, single), (expected, exact))]
    scale = float(gradients[1].abs().max())
    atol = (2e-4 if normalize else 2e-6) * scale
    torch.testing.assert_close(gradients[0].double(), gradients[1], rtol=0, atol=atol)
