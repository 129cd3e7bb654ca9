from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import HeteroData

from pyg_mmrec.data import Graph
from pyg_mmrec.data.graph import INTERACTS
from pyg_mmrec.evaluation import FullRanking
from pyg_mmrec.nn.backbones import BPRMF, VBPR, Backbone, ItemKNN, LightGCN, MostPop
from pyg_mmrec.nn.objectives import Method, Objective
from pyg_mmrec.training import Trainer, TrainingOptions, load_checkpoint
from tests.training.runs import (
    OPTIONS,
    assert_same_run,
    freedom_dvib,
    lightgcn,
    train,
)

ONE_EPOCH = replace(OPTIONS, epochs=1)


# Numbers that are no numbers ---------------------------------------------------------------------


def test_nan_loss_names_term_batch_and_epoch(
    data: HeteroData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = train(lightgcn(data), data)
    trainer = Trainer(lightgcn(data), data, OPTIONS, tmp_path, progress=False)
    batches = math.ceil(data[INTERACTS].edge_index.size(1) / OPTIONS.batch_size)
    assert batches > 2
    original, calls = trainer.backbone.loss, []

    def loss(*arguments: Any) -> dict[str, Tensor]:
        calls.append(None)
        terms = original(*arguments)
        if len(calls) == 5 * batches + 2:  # second batch of the sixth epoch
            terms["regularization"] = terms["regularization"] * float("nan")
        return terms

    with monkeypatch.context() as patch:
        patch.setattr(trainer.backbone, "loss", loss)
        with pytest.raises(
            FloatingPointError, match=r"term 'regularization' became nan in batch 1 of epoch 5;"
        ):
            trainer.fit()
    tensors, state = load_checkpoint(trainer.checkpoint)
    assert len(state["history"]["epochs"]) == 4
    assert all(x.isfinite().all() for x in tensors.values() if x.is_floating_point())
    healthy = Trainer(lightgcn(data, seed=9), data, OPTIONS, tmp_path, progress=False)
    healthy.fit(resume=True)
    assert_same_run(healthy, undisturbed)


def test_weights_broken_by_the_last_step_are_noticed(
    data: HeteroData, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(OPTIONS, batch_size=10**6)  # one step an epoch: no loss sees its result
    trainer = Trainer(lightgcn(data), data, options, progress=False)
    original = torch.optim.Adam.step

    def step(optimizer: torch.optim.Adam, *args: Any) -> None:
        original(optimizer, *args)
        trainer.backbone.item_embedding.weight.data[3, 1] = float("inf")

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    message = r"'backbone.item_embedding.weight' became NaN or infinite in epoch 0"
    with pytest.raises(FloatingPointError, match=message):
        trainer.fit()


# What is trained, and how ------------------------------------------------------------------------


@pytest.mark.parametrize("build", [lightgcn, freedom_dvib])
def test_same_seed_same_result(build: Callable[..., Objective], data: HeteroData) -> None:
    options = replace(OPTIONS, epochs=2)
    first = train(build(data), data, options)
    assert_same_run(first, train(build(data), data, options))
    sampled = train(build(data), data, replace(options, seed=1))
    initialised = train(build(data, seed=1), data, options)
    losses = {run.history.epochs[0]["loss"]["bpr"] for run in (first, sampled, initialised)}
    assert len(losses) == 3


def test_streams_are_independent(data: HeteroData) -> None:
    draws = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        trainer = Trainer(lightgcn(data), data, replace(OPTIONS, seed=seed), progress=False)
        draws.append(torch.rand(4, generator=torch.Generator().manual_seed(seed)))
        draws += [torch.rand(4, generator=g) for g in trainer.generators.values()]
    assert torch.stack(draws).unique(dim=0).size(0) == 6


def test_epoch_equals_plain_loops(data: HeteroData) -> None:
    """One epoch of LightGCN by the formulas, a dense matrix and torch's plain Adam, in float64."""
    objective = lightgcn(data).double()
    backbone = objective.backbone
    options = replace(OPTIONS, batch_size=300, epochs=1)
    trainer = Trainer(objective, data, options, progress=False)
    user = backbone.user_embedding.weight.detach().clone().requires_grad_()
    item = backbone.item_embedding.weight.detach().clone().requires_grad_()
    generator = torch.Generator()
    generator.set_state(trainer.generators["sampler"].get_state())
    batches = list(trainer.sampler.epoch(options.batch_size, generator))
    trainer.fit()

    edge_index = data[INTERACTS].edge_index
    adjacency = torch.zeros(user.size(0), item.size(0), dtype=torch.float64)
    adjacency[edge_index[0], edge_index[1]] = 1
    degrees = adjacency.sum(1, keepdim=True) * adjacency.sum(0, keepdim=True)
    adjacency = torch.where(adjacency > 0, adjacency / degrees.sqrt(), 0)
    adam = torch.optim.Adam([user, item], lr=options.learning_rate, foreach=False, fused=False)
    losses = []
    for batch in batches:
        u, i, j = batch.user, batch.positive, batch.negative
        user_1, item_1 = adjacency @ item, adjacency.t() @ user
        user_2, item_2 = adjacency @ item_1, adjacency.t() @ user_1
        users, items = (user + user_1 + user_2) / 3, (item + item_1 + item_2) / 3
        gap = (users[u] * items[i]).sum(1) - (users[u] * items[j]).sum(1)
        bpr = -torch.log(torch.sigmoid(gap) + 1e-10).mean()
        norms = user[u].norm() + item[i].norm() + item[j].norm()
        regularization = backbone.reg_weight * norms / u.numel()
        adam.zero_grad()
        (bpr + regularization).backward()
        adam.step()
        losses.append((bpr.item(), regularization.item()))
    assert len(losses) > 3
    # The normalisation is held in float32, which is all that the two differ by.
    torch.testing.assert_close(backbone.user_embedding.weight, user, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(backbone.item_embedding.weight, item, rtol=1e-5, atol=1e-6)
    means = torch.tensor(losses).mean(0).tolist()
    record = trainer.history.epochs[0]["loss"]
    assert list(record) == ["bpr", "regularization"]
    assert list(record.values()) == pytest.approx(means, rel=1e-5)


def test_learning_rate_decays_per_epoch(data: HeteroData, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: dict[int, set[float]] = {}
    options = replace(OPTIONS, learning_rate=0.1, lr_decay=0.96, lr_decay_epochs=2, epochs=4)
    trainer = Trainer(lightgcn(data), data, options, progress=False)
    original = torch.optim.Adam.step

    def step(optimizer: torch.optim.Adam, *args: Any) -> None:
        rates.setdefault(len(trainer.history.epochs), set()).add(optimizer.param_groups[0]["lr"])
        original(optimizer, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    trainer.fit()
    assert {epoch: len(found) for epoch, found in rates.items()} == dict.fromkeys(range(4), 1)
    found = [next(iter(rates[epoch])) for epoch in range(4)]
    assert found == pytest.approx([0.1, 0.1 * 0.96**0.5, 0.096, 0.1 * 0.96**1.5], rel=1e-12)


class Sampled(LightGCN):
    """Notes which graphs are sampled and trained on."""

    _full: Graph
    _sampled: list[tuple[int, Graph, Graph, Any]]
    _trained: list[Graph]

    def sample_graph(
        self, graph: Graph, epoch: int, generator: torch.Generator | None = None
    ) -> Graph:
        sample = graph.replace(mask={"drawn": self.item_embedding.weight.sum(1)})
        self._sampled.append((epoch, graph, sample, generator))
        return sample

    def encode(self, hidden: Any, context: Any, graph: Graph, delta: Any = None) -> Any:
        if self.training:
            self._trained.append(graph)
        else:
            assert graph is self._full, "ranking reads the full graph"
        return super().encode(hidden, context, graph, delta)


@pytest.mark.parametrize("sampling", ["never", "epoch", "step"])
def test_graphs_are_sampled_as_declared(
    sampling: str, data: HeteroData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sampled, "graph_sampling", sampling)
    backbone = Sampled.from_data(data, embedding_dim=4)
    trainer = Trainer(Objective(backbone), data, replace(OPTIONS, epochs=3), progress=False)
    backbone._full, backbone._sampled, backbone._trained = trainer.graph, [], []
    trainer.fit()
    batches = math.ceil(data[INTERACTS].edge_index.size(1) / OPTIONS.batch_size)
    repeats = {"never": 0, "epoch": 1, "step": batches}[sampling]
    assert [epoch for epoch, *_ in backbone._sampled] == [
        e for e in range(3) for _ in range(repeats)
    ]
    for _, graph, _, generator in backbone._sampled:
        assert graph is trainer.graph and generator is trainer.generators["graph"]
    samples = [sample for _, _, sample, _ in backbone._sampled]
    expected = {
        "never": [trainer.graph] * (3 * batches),
        "epoch": [sample for sample in samples for _ in range(batches)],
        "step": samples,
    }[sampling]

    def marks(graphs: list[Graph]) -> list[int]:
        return [graph.mask["drawn"].data_ptr() if graph.mask else 0 for graph in graphs]

    assert marks(backbone._trained) == marks(expected)
    attached = [graph.mask["drawn"].requires_grad for graph in backbone._trained if graph.mask]
    first = [e * batches for e in range(3)] if sampling == "epoch" else range(3 * batches)
    assert attached == [step in first for step in range(len(attached))]


def test_unknown_graph_sampling_is_refused(
    data: HeteroData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sampled, "graph_sampling", "batch")
    with pytest.raises(ValueError, match="'graph_sampling' of Sampled needs to be 'never'"):
        Trainer(Objective(Sampled.from_data(data)), data)


def test_compiled_steps_are_the_plain_ones(
    data: HeteroData, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train(lightgcn(data), data, replace(OPTIONS, epochs=2))
    compiled = []

    def traced(function: Callable[..., Any]) -> Callable[..., Any]:
        compiled.append(function)
        return original(function, backend="aot_eager")  # type: ignore[no-any-return]

    original = torch.compile
    monkeypatch.setattr(torch, "compile", traced)
    trainer = train(lightgcn(data), data, replace(OPTIONS, epochs=2, compile=True))
    assert compiled[0] is trainer.objective
    for name, value in plain.objective.state_dict().items():
        torch.testing.assert_close(trainer.objective.state_dict()[name], value)


def test_reduced_precision_is_for_products_alone(data: HeteroData) -> None:
    def vbpr() -> Objective:
        torch.manual_seed(0)
        return Objective(VBPR.from_data(data, embedding_dim=8))

    full = train(vbpr(), data, replace(OPTIONS, epochs=2))
    reduced = train(vbpr(), data, replace(OPTIONS, epochs=2, precision="bf16"))
    assert {p.dtype for p in reduced.objective.parameters()} == {torch.float32}
    losses = [[epoch["loss"]["bpr"] for epoch in x.history.epochs] for x in (full, reduced)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


# Which epoch is kept -----------------------------------------------------------------------------


class Volume(Method):
    """Turns items up in ranking, by a learned weight that wanders along in training."""

    name = "volume"

    def __init__(self) -> None:
        super().__init__()
        self.volume = nn.Parameter(torch.zeros(()))

    def terms(self, backbone: Backbone, graph: Graph, stages: Any, batch: Any, clean: Any) -> Any:
        return {"drift": -self.volume}

    def inference_graph(self, backbone: Backbone, graph: Graph) -> Graph:
        assert not self.training, "it is asked in evaluation mode"
        to_item = graph.adjacency[INTERACTS]
        item = torch.arange(backbone.num_items)
        factor = torch.exp(20 * self.volume.detach() * torch.cos(item.double())).float()
        return graph.with_interactions(
            to_item.with_weight(to_item.weight * factor[to_item.edge_index[1]])
        )


def overfitting(data: HeteroData) -> Objective:
    torch.manual_seed(0)
    return Objective(LightGCN.from_data(data, embedding_dim=8), Volume())


@pytest.mark.parametrize("build", [freedom_dvib, overfitting])
def test_best_epoch_is_kept(build: Callable[..., Objective], data: HeteroData) -> None:
    options = replace(OPTIONS, learning_rate=0.1, epochs=60, patience=4, metric="ndcg@10")
    trainer = train(build(data), data, options)
    epochs, best = trainer.history.epochs, trainer.history.best_epoch
    values = [epoch["validation"]["ndcg@10"] for epoch in epochs]
    assert values[best] == max(values) and best == values.index(max(values))
    assert len(epochs) == best + 1 + 4
    kept = trainer.evaluate("val")
    kept = {name: kept[name] for name in epochs[best]["validation"]}
    assert kept == epochs[best]["validation"] != epochs[-1]["validation"]
    assert not any("coverage" in name for name in kept)
    user, item = trainer.vectors()
    assert user.shape == (120, 8) and item.shape == (90, 8) and not user.requires_grad


@pytest.mark.parametrize(("preset", "epochs"), [("paper", 23), ("mmrec", 24)])
def test_stops_when_the_metric_stops_rising(preset: str, epochs: int, data: HeteroData) -> None:
    options = TrainingOptions(batch_size=10**6, **TrainingOptions.presets[preset])
    trainer = Trainer(lightgcn(data), data, options, progress=False)
    values: Iterator[float] = iter([0.1, 0.2, 0.3] + [0.3 - 1e-6] * 100)
    trainer.validation = lambda scorer: {"recall@20": next(values)}  # type: ignore[assignment]
    trainer.fit()
    assert (len(trainer.history.epochs), trainer.history.best_epoch) == (epochs, 2)


@pytest.mark.parametrize("backbone", [MostPop, ItemKNN])
def test_backbone_without_parameters(
    backbone: type[Backbone], data: HeteroData, tmp_path: Path
) -> None:
    trainer = Trainer(Objective(backbone.from_data(data)), data, OPTIONS, tmp_path, progress=False)
    history = trainer.fit(resume=True)
    assert (history.epochs, history.best_epoch, history.seconds_per_epoch()) == ([], -1, {})
    assert trainer.evaluate("test")["recall@20"] > 0.1
    assert trainer.evaluate("val")["recall@20"] > 0.1
    assert list(tmp_path.iterdir()) == []


def test_ranking_reads_the_graph_that_methods_leave(data: HeteroData) -> None:
    trainer = train(overfitting(data), data, replace(OPTIONS, epochs=3))
    test, (user, _) = trainer.evaluate("test"), trainer.vectors()
    trainer.objective.methods[0].volume.data.zero_()
    assert trainer.evaluate("test") != test
    assert not torch.equal(trainer.vectors()[0], user)
    bare = Trainer(Objective(trainer.backbone), data, OPTIONS, progress=False)
    assert bare.evaluate("test") == trainer.evaluate("test")


def test_the_callers_data_stay_as_they_are(
    data: HeteroData, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = []
    original = HeteroData.to
    monkeypatch.setattr(HeteroData, "to", lambda self, *a: moved.append(self) or original(self, *a))
    before = copy.deepcopy(data)
    trainer = train(freedom_dvib(data), data, replace(OPTIONS, epochs=1))
    assert data.keys() == before.keys() and data.edge_types == before.edge_types
    for store, other in zip(data.stores, before.stores, strict=True):
        assert list(store.keys()) == list(other.keys())
        for key, value in store.items():
            assert not isinstance(value, Tensor) or torch.equal(value, other[key])
    assert all(one is not data for one in moved), "its tensors would move to the GPU in place"
    seconds = trainer.history.seconds_per_epoch()
    assert seconds["train"] > 0 and seconds["validation"] > 0


def test_progress_bar_tells_the_metric(
    data: HeteroData, capsys: pytest.CaptureFixture[str]
) -> None:
    Trainer(lightgcn(data), data, replace(OPTIONS, epochs=1)).fit()
    assert "recall@20=" in capsys.readouterr().err
    train(lightgcn(data), data, replace(OPTIONS, epochs=1))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.0}, r"'learning_rate' needs to be positive \(got 0.0\)"),
        ({"lr_decay": float("nan")}, r"'lr_decay' needs to be positive \(got nan\)"),
        ({"batch_size": 0}, r"'batch_size' needs to be a positive integer \(got 0\)"),
        ({"epochs": 1.5}, r"'epochs' needs to be a positive integer \(got 1.5\)"),
        ({"patience": -1}, r"'patience' needs to be a positive integer \(got -1\)"),
        ({"checkpoint_epochs": True}, r"'checkpoint_epochs' needs to be a positive integer"),
        ({"decimals": -1}, r"'decimals' needs to be an integer of 0 or more \(got -1\)"),
        ({"seed": -5}, r"'seed' needs to be an integer of 0 or more \(got -5\)"),
        ({"precision": "fp16"}, r"'precision' needs to be one of \['float32', 'bf16'\]"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingOptions(**options)


def test_what_does_not_go_together_is_refused(data: HeteroData) -> None:
    backbone = LightGCN(data["user"].num_nodes, data["item"].num_nodes + 1)
    with pytest.raises(ValueError, match=r"needs data of \d+ users and \d+ items \(got \d+ and"):
        Trainer(Objective(backbone), data, OPTIONS, progress=False)
    with pytest.raises(ValueError, match=r"'objective' needs to be an Objective.*\(got LightGCN\)"):
        Trainer(backbone, data)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"needs to be a HeteroData, of .* \[0\] \(got list\)"):
        Trainer(Objective(backbone), [data])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'options' needs to be TrainingOptions \(got dict\)"):
        Trainer(Objective(backbone), data, {"epochs": 3})  # type: ignore[arg-type]


class NothingToTrain(Method):
    """Has a second stage without parameters."""

    name = "nothing"

    def second_terms(self, *_: Any) -> dict[str, Tensor]:
        return {"one": torch.ones(())}


def test_a_second_stage_needs_parameters(data: HeteroData) -> None:
    trainer = Trainer(Objective(BPRMF.from_data(data), NothingToTrain()), data, progress=False)
    with pytest.raises(ValueError, match=r"terms \['nothing/one'\] and nothing to train"):
        trainer.fit()


def test_unknown_metric_and_split_are_refused(data: HeteroData) -> None:
    with pytest.raises(ValueError, match=r"'metric' needs to be one of .*\(got 'recall@7'\)"):
        Trainer(lightgcn(data), data, TrainingOptions(metric="recall@7"))
    trainer = Trainer(lightgcn(data), data, progress=False)
    with pytest.raises(ValueError, match="'split' needs to be 'val' or 'test'"):
        trainer.evaluate("train")  # type: ignore[arg-type]


def test_a_callback_hears_every_epoch_and_can_end_the_training(data: HeteroData) -> None:
    heard: list[tuple[int, float]] = []

    def callback(epoch: int, record: dict[str, Any]) -> None:
        heard.append((epoch, record["validation"]["recall@20"]))
        if epoch == 2:
            raise StopIteration

    trainer = Trainer(lightgcn(data), data, replace(OPTIONS, epochs=5), progress=False)
    with pytest.raises(StopIteration):
        trainer.fit(callback=callback)
    records = trainer.history.epochs
    assert heard == [(i, record["validation"]["recall@20"]) for i, record in enumerate(records)]
    assert len(heard) == 3


def test_vectors_are_copies(data: HeteroData) -> None:
    trainer = train(Objective(BPRMF.from_data(data, embedding_dim=8)), data, ONE_EPOCH)
    before = trainer.evaluate("val")
    for vectors in trainer.vectors():
        vectors.numpy().fill(0.0)
    assert trainer.evaluate("val") == before


def test_validation_items_may_be_no_candidates_on_test(data: HeteroData) -> None:
    objective = lightgcn(data)
    masked = replace(ONE_EPOCH, mask_validation=True)
    trainer = Trainer(objective, data, masked, progress=False)
    expected = FullRanking.from_hetero(data, "test", mask_validation=True)(trainer.scorer())
    assert trainer.evaluate("test") == expected
    assert expected != Trainer(objective, data, ONE_EPOCH, progress=False).evaluate("test")
