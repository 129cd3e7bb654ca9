import math

import pytest
import torch

from pyg_mmrec.data.graph import INTERACTS, SIMILAR
from pyg_mmrec.nn.backbones import BPRMF, FREEDOM, LATTICE, VBPR, LightGCN
from pyg_mmrec.nn.objectives import DVIBa, Method, MirrorGradient, Objective, SecondStage
from pyg_mmrec.training import Trainer, TrainingOptions

OPTIONS = TrainingOptions(learning_rate=0.02, batch_size=250, epochs=1)


def test_every_interval_th_batch_goes_forth_and_back():
    mirror = MirrorGradient()
    scales = [mirror.gradient_scales(step) for step in range(7)]
    there, plain = (1.0, -0.1), (1.0,)
    assert scales == [there, plain, plain, there, plain, plain, there]
    mirror = MirrorGradient(0.5, 0.3, 1)
    assert [mirror.gradient_scales(step) for step in range(3)] == [(0.5, -0.3)] * 3


def test_an_objective_steps_as_its_one_scaling_method_says(tiny):
    class Twice(Method):
        name = "twice"

        def gradient_scales(self, step):
            return (1.0, 1.0)

    backbone = VBPR.from_data(tiny, embedding_dim=8)
    objective = Objective(backbone, DVIBa(), MirrorGradient(0.5, interval=2), SecondStage())
    assert [objective.gradient_scales(step) for step in range(3)] == [(0.5, -0.1), (1.0,),
                                                                      (0.5, -0.1)]  # fmt: skip
    assert Objective(backbone, DVIBa()).gradient_scales(0) == (1.0,)
    with pytest.raises(ValueError) as error:
        Objective(backbone, MirrorGradient(), Twice())
    assert str(error.value) == "only one method can scale the gradient (got ['mg', 'twice'])"
    with pytest.raises(ValueError, match=r"each method goes in once \(got \['mg', 'mg'\]\)"):
        Objective(backbone, MirrorGradient(), MirrorGradient())


def test_it_adds_no_term_and_no_weights(tiny, sample):
    torch.manual_seed(0)
    backbone = LightGCN.from_data(tiny, embedding_dim=8)
    graph, batch = backbone.graph(tiny), sample(tiny)
    objective = Objective(backbone, MirrorGradient())
    terms, bare = objective(graph, batch), Objective(backbone)(graph, batch)
    assert list(terms) == list(bare) and all(torch.equal(x, bare[key]) for key, x in terms.items())
    assert len(list(objective.parameters())) == len(list(backbone.parameters()))
    assert objective.inference_graph(graph) is graph


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha_1": -1.0}, r"'alpha_1' needs to be a positive number \(got -1.0\)"),
        ({"alpha_1": True}, r"'alpha_1' needs to be a positive number \(got True\)"),
        ({"alpha_2": 0}, r"'alpha_2' needs to be a positive number \(got 0\)"),
        ({"alpha_2": float("nan")}, r"'alpha_2' needs to be a positive number \(got nan\)"),
        ({"alpha_2": "1"}, r"'alpha_2' needs to be a positive number \(got '1'\)"),
        ({"interval": 0}, r"'interval' needs to be a positive integer \(got 0\)"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MirrorGradient(**options)


# In training -------------------------------------------------------------------------------------


class Adam:
    """Adam by its formulas, in float64."""

    def __init__(self, parameters, lr):
        self.parameters, self.lr, self.steps = list(parameters), lr, 0
        self.first = [torch.zeros_like(x) for x in self.parameters]
        self.second = [torch.zeros_like(x) for x in self.parameters]

    def step(self, gradients):
        self.steps += 1
        for i, (x, g) in enumerate(zip(self.parameters, gradients, strict=True)):
            self.first[i] = 0.9 * self.first[i] + 0.1 * g
            self.second[i] = 0.999 * self.second[i] + 0.001 * g * g
            mean = self.first[i] / (1 - 0.9**self.steps)
            root = (self.second[i] / (1 - 0.999**self.steps)).sqrt()
            x.data -= self.lr * mean / (root + 1e-8)


def batches_of(trainer):
    generator = torch.Generator()
    generator.set_state(trainer.generators["sampler"].get_state())
    return list(trainer.sampler.epoch(trainer.options.batch_size, generator))


def test_training_equals_plain_loops(tiny):
    """Matrix factorisation without penalty, its gradient written out, forth and back."""

    def build(*methods):
        torch.manual_seed(0)
        return Objective(BPRMF.from_data(tiny, embedding_dim=4, reg_weight=0), *methods).double()

    objective = build(MirrorGradient(0.8, 0.3, interval=2))
    trainer = Trainer(objective, tiny, OPTIONS, progress=False)
    batches = batches_of(trainer)
    trainer.fit()

    backbone = build().backbone
    user, item = backbone.user_embedding.weight.detach(), backbone.item_embedding.weight.detach()
    adam, losses = Adam([user, item], 0.02), []

    def gradients(batch):
        u, i, j = batch.user, batch.positive, batch.negative
        gap = (user[u] * (item[i] - item[j])).sum(1)
        slope = (-torch.sigmoid(-gap) / u.numel())[:, None]
        to_item = torch.zeros_like(item).index_add(0, i, slope * user[u])
        to_item = to_item.index_add(0, j, -slope * user[u])
        to_user = torch.zeros_like(user).index_add(0, u, slope * (item[i] - item[j]))
        return -torch.log(torch.sigmoid(gap)).mean().item(), (to_user, to_item)

    for step, batch in enumerate(batches):
        loss, found = gradients(batch)
        losses.append(loss)
        if step % 2 == 0:
            adam.step([0.8 * g for g in found])
            _, found = gradients(batch)
            adam.step([-0.3 * g for g in found])
        else:
            adam.step(found)
    assert len(batches) >= 5
    torch.testing.assert_close(objective.backbone.user_embedding.weight, user, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(objective.backbone.item_embedding.weight, item, rtol=1e-6, atol=1e-9)
    assert trainer.history.epochs[0]["loss"] == pytest.approx({"bpr": sum(losses) / len(losses)})


def replay(objective, trainer_options, graph, batches, generator, draws, again=True):
    """One epoch of mirrored steps by hand, with the graphs that ``draws`` says.

    Args:
        draws: Draws a graph anew for each computation of the loss ("step"), or one for the epoch
            whose gradient reaches its first batch ("epoch").
        again: Whether the second computation has a graph of its own where that is due.
    """
    backbone, mirror = objective.backbone, objective.methods[-1]
    adam = torch.optim.Adam(objective.parameters(), lr=trainer_options.learning_rate, fused=True)
    before, fixed, first_losses = generator.get_state(), None, []
    for step, batch in enumerate(batches):
        scales = (mirror.alpha_1, -mirror.alpha_2) if step % mirror.interval == 0 else (1.0,)
        for number, scale in enumerate(scales):
            if draws == "step" and (again or number == 0):
                drawn = backbone.sample_graph(graph, 0, generator)
            elif draws == "epoch" and step == 0 and (again or number == 0):
                generator.set_state(before)
                drawn = backbone.sample_graph(graph, 0, generator)
                fixed = drawn.detach() if fixed is None else fixed
            elif draws == "epoch":
                drawn = fixed
            terms = objective(drawn, batch)
            (scale * torch.stack(list(terms.values())).sum()).backward()
            adam.step()
            adam.zero_grad()
            if number == 0:
                first_losses.append([x.item() for x in terms.values()])
    means = torch.tensor(first_losses).double().mean(0).tolist()
    return dict(zip(terms, means, strict=True))


REPLAYED = {
    # FREEDOM with its graph pruned anew for each computation of the loss, and with noise
    "FREEDOM-step": (FREEDOM, {"edge_dropout": 0.5}, "step", [DVIBa]),
    "FREEDOM-epoch": (FREEDOM, {"edge_dropout": 0.5}, "epoch", [DVIBa]),
    "LATTICE-epoch": (LATTICE, {}, "epoch", []),
}


@pytest.mark.parametrize("case", REPLAYED)
def test_graph_and_noise_are_made_anew_for_the_way_back(case, tiny, monkeypatch):
    cls, options, sampling, methods = REPLAYED[case]
    monkeypatch.setattr(cls, "graph_sampling", sampling)

    def build():
        torch.manual_seed(0)
        backbone = cls.from_data(tiny, embedding_dim=8, **options)
        return Objective(backbone, *(m() for m in methods), MirrorGradient(1.0, 0.3, 2))

    objective = build()
    trainer = Trainer(objective, tiny, OPTIONS, progress=False)
    batches, state = batches_of(trainer), trainer.generators["graph"].get_state()
    torch.manual_seed(1)
    trainer.fit()

    def by_hand(again=True):
        other, generator = build(), torch.Generator()
        generator.set_state(state)
        torch.manual_seed(1)
        graph = other.backbone.graph(tiny)
        losses = replay(other, OPTIONS, graph, batches, generator, sampling, again)
        return other.state_dict(), losses, generator.get_state()

    weights, losses, state_after = by_hand()
    for key, x in objective.state_dict().items():
        assert torch.equal(x, weights[key]), key
    assert trainer.history.epochs[0]["loss"] == losses
    assert torch.equal(trainer.generators["graph"].get_state(), state_after)
    if case != "FREEDOM-epoch":  # of which the same pruning is drawn again
        once, *_ = by_hand(again=False)
        assert any(not torch.equal(x, once[key]) for key, x in weights.items())


@pytest.mark.parametrize("case", REPLAYED)
def test_graphs_of_an_epoch(case, tiny, monkeypatch):
    """Which graph each computation of the loss sees."""
    cls, options, sampling, _ = REPLAYED[case]
    monkeypatch.setattr(cls, "graph_sampling", sampling)
    torch.manual_seed(0)
    backbone = cls.from_data(tiny, embedding_dim=8, **options)
    objective = Objective(backbone, MirrorGradient(interval=2))
    trainer = Trainer(objective, tiny, OPTIONS, progress=False)
    seen, forward = [], objective.forward

    def noted(graph, batch):
        kept = graph.adjacency[INTERACTS if cls is FREEDOM else SIMILAR]
        seen.append((batch.user, kept.edge_index, kept.weight.detach(), kept.weight.requires_grad))
        return forward(graph, batch)

    monkeypatch.setattr(objective, "forward", noted)
    trainer.fit()
    num_batches = len(batches_of(trainer))
    assert len(seen) == num_batches + math.ceil(num_batches / 2)
    twice = [n for n in range(1, len(seen)) if torch.equal(seen[n][0], seen[n - 1][0])]
    assert twice == list(range(1, len(seen), 3))

    def same(one, other):
        return torch.equal(one[1], other[1]) and torch.equal(one[2], other[2])

    if sampling == "step":
        assert not any(same(seen[n], seen[n - 1]) for n in range(1, len(seen)))
    else:  # what follows the first batch sees the epoch's graph, as it was drawn first
        assert all(same(seen[0], other) and not other[3] for other in seen[2:])
        assert same(seen[0], seen[1]) == (cls is FREEDOM)  # LATTICE: from the moved weights
        assert seen[0][3] == seen[1][3] == (cls is LATTICE)


def test_steps_are_counted_anew_in_every_epoch(tiny):
    torch.manual_seed(0)
    objective = Objective(BPRMF.from_data(tiny, embedding_dim=4), MirrorGradient(interval=3))
    options = TrainingOptions(batch_size=300, epochs=3)
    trainer = Trainer(objective, tiny, options, progress=False)
    num_batches = len(batches_of(trainer))
    assert num_batches % 3 != 0
    trainer.fit()
    (one, _) = trainer.optimizers["adam"].state.values()
    assert one["step"] == 3 * (num_batches + math.ceil(num_batches / 3))


def test_the_second_stage_takes_its_one_step(tiny):
    torch.manual_seed(0)
    backbone = VBPR.from_data(tiny, embedding_dim=4)
    objective = Objective(backbone, MirrorGradient(interval=1), SecondStage())
    trainer = Trainer(objective, tiny, OPTIONS, progress=False)
    num_batches = len(batches_of(trainer))
    trainer.fit()
    table = backbone.user_embedding.weight
    steps = {name: int(o.state[table]["step"]) for name, o in trainer.optimizers.items()}
    assert steps == {"adam": 2 * num_batches, "second_adam": num_batches}
    assert list(trainer.history.epochs[0]["loss"]) == [
        "bpr", "regularization", "second_stage/contrast"
    ]  # fmt: skip
