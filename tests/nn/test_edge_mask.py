import math

import pytest
import torch
from torch import nn
from torch_geometric import EdgeIndex

from pyg_mmrec.data import Adjacency
from pyg_mmrec.nn.edge_mask import BernoulliEdgeMask


def graph(num_sources=6, num_targets=5, channels=4, seed=0):
    """Vectors of sources and targets in float64, and every third pair as an edge, shuffled."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.randn(num_sources, channels, dtype=torch.float64, generator=generator)
    target = torch.randn(num_targets, channels, dtype=torch.float64, generator=generator)
    pairs = torch.cartesian_prod(torch.arange(num_sources), torch.arange(num_targets))
    order = torch.randperm(len(pairs), generator=generator)[: len(pairs) // 3]
    return source, target, pairs[order].t().contiguous()


def mask_module(channels=4, seed=0, **options):
    torch.manual_seed(seed)
    module = BernoulliEdgeMask(channels, hidden_channels=8, **options).double()
    nn.init.normal_(module.lin_target.bias)
    nn.init.normal_(module.lin_out.bias)
    return module


def of_logits(logits, **options):
    """A mask module and its input, so that each edge has the given logit."""
    module = BernoulliEdgeMask(1, hidden_channels=2, **options).double()
    with torch.no_grad():  # relu(h) - relu(-h) = h
        module.lin_target.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        module.lin_source.weight.zero_()
        module.lin_out.weight.copy_(torch.tensor([[1.0, -1.0]]))
    nodes = torch.arange(len(logits))
    return module, torch.tensor(logits, dtype=torch.float64)[:, None], torch.stack([nodes, nodes])


def explicit(module, source, target, edge_index):
    """The MLP on the concatenation [target || source], edge by edge."""
    first = torch.cat([module.lin_target.weight, module.lin_source.weight], dim=1)
    logits = []
    for j, i in edge_index.t().tolist():
        hidden = (first @ torch.cat([target[i], source[j]]) + module.lin_target.bias).relu()
        logits.append((module.lin_out.weight @ hidden + module.lin_out.bias).squeeze())
    return torch.stack(logits)


def test_equals_an_mlp_on_the_concatenated_ends():
    module = mask_module()
    x, _, _ = graph()
    edge_index = torch.tensor([[0, 1, 5, 2, 2], [1, 0, 3, 2, 4]])
    expected = explicit(module, x, x, edge_index)
    torch.testing.assert_close(module.logit(x, edge_index), expected)
    torch.testing.assert_close(module.probability(x, edge_index), expected.sigmoid())
    assert not torch.isclose(expected[0], expected[1])  # an edge differs from its reverse


@pytest.mark.parametrize("width", [4, 2])
def test_equals_an_mlp_on_a_bipartite_graph(width):
    module = mask_module((width, 4))
    source, target, edge_index = graph()
    source = source[:, :width]
    expected = explicit(module, source, target, edge_index)
    torch.testing.assert_close(module.logit((source, target), edge_index), expected)
    torch.testing.assert_close(
        module.eval()((source, target), edge_index), 1 / (1 + (-expected).exp())
    )


def test_many_edges_are_scored_some_at_a_time(monkeypatch):
    module = mask_module()
    source, target, edge_index = graph(20, 15)
    found = []
    for numbers in (1, 8 * 7, 2**20):  # an edge of 8 hidden numbers at a time, 7, all
        monkeypatch.setattr("pyg_mmrec.nn.edge_mask._NUMBERS_AT_A_TIME", numbers)
        ends = source.clone().requires_grad_(), target.clone().requires_grad_()
        logit = module.logit(ends, edge_index)
        inputs = (*ends, *module.parameters())
        upstream = torch.linspace(-1, 2, logit.numel(), dtype=logit.dtype)
        found.append((logit.detach(), *torch.autograd.grad(logit, inputs, upstream)))
    assert edge_index.size(1) == 100
    expected = explicit(module, *ends, edge_index)
    gradients = torch.autograd.grad(expected, inputs, upstream)
    for parts in found:
        torch.testing.assert_close(parts, (expected.detach(), *gradients))


def test_adjacency_gives_the_order_of_its_edges():
    module = mask_module()
    source, target, edge_index = graph()
    adjacency = Adjacency.from_edge_index(edge_index, size=(6, 5))
    assert not torch.equal(adjacency.edge_index, edge_index)
    for read in (module.logit, module.probability, module.eval()):
        expected = read((source, target), adjacency.edge_index)
        assert torch.equal(read((source, target), adjacency), expected)


def test_takes_an_edge_index_of_pyg():
    module = mask_module().eval()
    source, target, edge_index = graph()
    given = EdgeIndex(edge_index, sparse_size=(6, 5))
    mask = module((source, target), given)
    assert type(mask) is torch.Tensor
    assert torch.equal(mask, module((source, target), edge_index))


def test_edges_and_nodes_may_come_in_any_order():
    module = mask_module().eval()
    source, target, edge_index = graph()
    expected = module((source, target), edge_index)
    order = torch.randperm(edge_index.size(1), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(module((source, target), edge_index[:, order]), expected[order])
    renamed = torch.stack([5 - edge_index[0], 4 - edge_index[1]])
    torch.testing.assert_close(module((source.flip(0), target.flip(0)), renamed), expected)
    assert expected.unique().numel() == expected.numel()


@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_drops_as_many_edges(autocast):
    number, probability = 200_000, 1 / (1 + math.exp(6))
    module, x, _ = of_logits([6.0], straight_through=True)
    edge_index = torch.zeros(2, number, dtype=torch.long)
    generator = torch.Generator().manual_seed(0)
    dtype = torch.float32 if autocast else torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        mask = module.to(dtype)(x.to(dtype), edge_index, generator)
    assert mask.dtype == torch.float32
    std = math.sqrt(probability / number)
    assert mask.lt(0.5).double().mean().item() == pytest.approx(probability, abs=4 * std)


def test_no_edges_give_no_mask():
    module = mask_module()
    source, target, _ = graph()
    empty = torch.empty(2, 0, dtype=torch.long)
    assert module((source, target), empty).shape == (0,)
    assert module.eval()((source, target), empty).shape == (0,)


def test_evaluation_gives_the_expectation_and_draws_nothing():
    module = mask_module(straight_through=True).eval()
    source, target, edge_index = graph()
    state = torch.get_rng_state()
    mask = module((source, target), edge_index)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(mask, module.probability((source, target), edge_index))
    assert torch.equal(mask, module.train().probability((source, target), edge_index))


@pytest.mark.parametrize("temperature", [0.2, 2.0])
@pytest.mark.parametrize("straight_through", [False, True])
def test_an_edge_is_kept_with_its_probability(temperature, straight_through):
    draws, logits = 20_000, [-2.0, -0.5, 0.0, 1.0, 3.0]
    options = {"temperature": temperature, "straight_through": straight_through}
    module, x, edge_index = of_logits(logits, **options)
    many = edge_index.repeat(1, draws)
    sample = module(x, many, torch.Generator().manual_seed(0)).view(draws, len(logits))
    for logit, kept in zip(logits, sample.round().mean(0).tolist(), strict=True):
        probability = 1 / (1 + math.exp(-logit))
        std = math.sqrt(probability * (1 - probability) / draws)
        assert abs(kept - probability) < 4 * std
    assert torch.equal(sample, sample.round()) is straight_through


def test_relaxation_follows_the_formula():
    logits = [-1.0, 0.0, 2.0]
    module, x, edge_index = of_logits(logits, temperature=0.5)
    mask = module(x, edge_index, torch.Generator().manual_seed(3))
    epsilon = torch.empty(3, dtype=torch.float64)
    epsilon.uniform_(0, 1, generator=torch.Generator().manual_seed(3))
    for value, logit, e in zip(mask.tolist(), logits, epsilon.tolist(), strict=True):
        noisy = (logit + math.log(e) - math.log(1 - e)) / 0.5
        assert value == pytest.approx(1 / (1 + math.exp(-noisy)), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_relaxed_values_lie_between_0_and_1(dtype):
    module, x, edge_index = of_logits([0.0] * 10_000, temperature=1.0)
    mask = module.to(dtype)(x.to(dtype), edge_index, torch.Generator().manual_seed(0))
    assert mask.dtype == dtype
    assert mask.min() > 0 and mask.max() < 1
    # At temperature 1 and logit 0 the relaxation is the uniform variable itself.
    assert mask.mean().item() == pytest.approx(0.5, abs=0.012)
    assert mask.var().item() == pytest.approx(1 / 12, abs=0.003)


def test_certain_edges_stay_finite():
    module, x, edge_index = of_logits([-80.0, 80.0, 0.0])
    module, x = module.float(), x.float().requires_grad_()
    mask = module(x, edge_index)
    mask.sum().backward()
    assert mask[0] < 1e-6 and mask[1] == 1 and mask.isfinite().all()
    assert x.grad.isfinite().all()


def test_a_low_temperature_gives_the_rounded_mask():
    logits = torch.linspace(-3, 3, 2000).tolist()
    far = []
    for temperature in (5.0, 0.5, 0.05, 1e-5):
        soft, x, edge_index = of_logits(logits, temperature=temperature)
        hard, _, _ = of_logits(logits, temperature=temperature, straight_through=True)
        relaxed = soft(x, edge_index, torch.Generator().manual_seed(0))
        rounded = hard(x, edge_index, torch.Generator().manual_seed(0))
        assert torch.equal(relaxed.round(), rounded)
        far.append((relaxed - rounded).abs().mean().item())
    assert far[0] > 0.3
    assert far == sorted(far, reverse=True)
    assert far[-1] < 1e-4


def test_straight_through_values_have_the_gradient_of_the_relaxation():
    source, target, edge_index = graph()
    upstream = torch.linspace(-1, 2, edge_index.size(1), dtype=torch.float64)
    masks, gradients = [], []
    for straight_through in (False, True):
        module = mask_module(straight_through=straight_through)
        mask = module((source, target), edge_index, torch.Generator().manual_seed(0))
        mask.backward(upstream)
        masks.append(mask.detach())
        gradients.append({name: p.grad for name, p in module.named_parameters()})
    relaxed, rounded = masks
    assert set(rounded.tolist()) == {0.0, 1.0}
    assert torch.equal(relaxed.round(), rounded)
    torch.testing.assert_close(gradients[1], gradients[0])
    # d mask / d logit = mask (1 - mask) / t, summed in the last bias.
    expected = (upstream * relaxed * (1 - relaxed) / 0.2).sum()
    torch.testing.assert_close(gradients[0]["lin_out.bias"], expected[None])


@pytest.mark.parametrize("straight_through", [False, True])
def test_generator_decides_the_draw(straight_through):
    module = mask_module(straight_through=straight_through)
    x, _, _ = graph(num_sources=40)
    edge_index = torch.randint(40, (2, 300), generator=torch.Generator().manual_seed(0))

    def draw(seed):
        return module(x, edge_index, torch.Generator().manual_seed(seed))

    assert torch.equal(draw(0), draw(0)) and not torch.equal(draw(0), draw(1))
    state = torch.get_rng_state()
    draw(2)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    first = module(x, edge_index)
    assert not torch.equal(module(x, edge_index), first)
    torch.manual_seed(5)
    assert torch.equal(module(x, edge_index), first)


@pytest.mark.parametrize("training", [False, True])
def test_gradcheck(training):
    module = mask_module(temperature=1.0).train(training)
    source, target, edge_index = graph()

    def mask(source, target):
        return module((source, target), edge_index, torch.Generator().manual_seed(0))

    assert torch.autograd.gradcheck(mask, (source.requires_grad_(), target.requires_grad_()))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("straight_through", [False, True])
def test_every_parameter_and_both_ends_get_a_gradient(training, straight_through):
    module = mask_module(straight_through=straight_through, temperature=1.0).train(training)
    source, target, edge_index = graph()
    source.requires_grad_(), target.requires_grad_()
    module((source, target), edge_index).sum().backward()
    for parameter in (source, target, *module.parameters()):
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0


def test_state_and_reset():
    module, other = mask_module(seed=0), mask_module(seed=1)
    source, target, edge_index = graph()
    expected = module.probability((source, target), edge_index)
    assert not torch.equal(other.probability((source, target), edge_index), expected)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.probability((source, target), edge_index), expected)
    shapes = {name: list(value.shape) for name, value in module.state_dict().items()}
    assert shapes == {
        "lin_target.weight": [8, 4],
        "lin_target.bias": [8],
        "lin_source.weight": [8, 4],
        "lin_out.weight": [1, 8],
        "lin_out.bias": [1],
    }
    before = module.lin_out.weight.clone()
    module.reset_parameters()
    assert module.lin_target.bias.eq(0).all() and module.lin_out.bias.eq(0).all()
    assert module.lin_out.weight.ne(before).all()
    assert "temperature=0.2, straight_through=False" in repr(module)


@pytest.mark.parametrize("straight_through", [False, True])
def test_learns_to_drop_wrong_edges(straight_through):
    """Every node's neighbours are to agree with its sign; half of them are of the other one."""
    generator = torch.Generator().manual_seed(0)
    sign = torch.arange(60) % 2 * 2.0 - 1
    x = sign[:, None] * torch.tensor([1.0, 0.0, -1.0]) + 0.4 * torch.randn(
        60, 3, generator=generator
    )
    edge_index = torch.randint(60, (2, 1200), generator=generator)
    seen, held_out = edge_index[:, :600], edge_index[:, 600:]
    torch.manual_seed(0)
    module = BernoulliEdgeMask(3, hidden_channels=8, straight_through=straight_through)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    for _ in range(80):
        mask = module(x, seen, generator)
        total = torch.zeros(60).index_add(0, seen[1], mask * sign[seen[0]])
        count = torch.zeros(60).index_add(0, seen[1], mask) + 1e-2
        loss = (total / count - sign).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    probability = module.probability(x, held_out)
    right = sign[held_out[0]] == sign[held_out[1]]
    assert probability[~right].mean() < 0.1
    assert probability[right].mean() > 0.6


@pytest.mark.parametrize("straight_through", [False, True])
def test_no_graph_break_under_compile(straight_through):
    module = mask_module(straight_through=straight_through)
    source, target, edge_index = graph()
    adjacency = Adjacency.from_edge_index(edge_index, size=(6, 5))
    source.requires_grad_()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=False)
    for edges in (edge_index, adjacency):
        masks, gradients = [], []
        for function in (module, compiled):
            torch.manual_seed(0)
            masks.append(function((source, target), edges))
            gradients += torch.autograd.grad(masks[-1].square().sum(), source)
        torch.testing.assert_close(*masks)
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("shape", [(3, 4), (4,), (2, 3, 1)])
def test_other_shapes_of_edges_are_refused(shape):
    edge_index = torch.zeros(shape, dtype=torch.long)
    with pytest.raises(ValueError, match=r"'edge_index' needs shape \[2, num_edges\] \(got \["):
        mask_module()(graph()[0], edge_index)


@pytest.mark.parametrize("name", ["in_channels", "hidden_channels", "temperature"])
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_and_temperature_need_to_be_positive(name, value):
    options = {"in_channels": 4, name: value}
    with pytest.raises(ValueError, match=rf"'{name}' needs to be (a )?positive.* \(got {value}\)"):
        BernoulliEdgeMask(**options)
