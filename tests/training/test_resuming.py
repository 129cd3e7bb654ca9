from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from pyg_mmrec.data.graph import INTERACTS
from pyg_mmrec.nn.backbones import FREEDOM, VBPR, LightGCN
from pyg_mmrec.nn.objectives import DVIBc, Objective
from pyg_mmrec.training import Trainer, load_checkpoint
from tests.training.runs import (
    OPTIONS,
    assert_same_run,
    freedom_dvib,
    interrupt,
    lightgcn,
    train,
)


@pytest.mark.parametrize("build", [lightgcn, freedom_dvib])
@pytest.mark.parametrize("epochs", [(2,), (3, 5), (6,)])
def test_resumed_run_is_bit_identical(
    build: Callable[..., Objective],
    epochs: tuple[int, ...],
    data: HeteroData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    undisturbed = train(build(data), data)
    trainer = Trainer(build(data), data, OPTIONS, tmp_path, progress=False)
    for epoch in epochs:
        interrupt(monkeypatch, trainer, epoch)
        # As in a new process: other weights, another global random state.
        trainer = Trainer(build(data, seed=99), data, OPTIONS, tmp_path, progress=False)
    trainer.fit(resume=True)
    assert_same_run(trainer, undisturbed)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_interrupted_trainer_itself_resumes_bit_identical(
    threads: int,
    data: HeteroData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))
    torch.set_num_threads(threads)
    undisturbed = train(freedom_dvib(data), data)
    trainer = Trainer(freedom_dvib(data), data, OPTIONS, tmp_path, progress=False)
    interrupt(monkeypatch, trainer, 5)
    assert any(x.grad is not None for x in trainer.objective.parameters())
    trainer.fit(resume=True)
    assert_same_run(trainer, undisturbed)


def test_finished_run_goes_on_with_more_epochs(data: HeteroData, tmp_path: Path) -> None:
    options = replace(OPTIONS, learning_rate=0.3)
    trainer = train(freedom_dvib(data), data, replace(options, epochs=5), folder=tmp_path)
    assert len(trainer.history.epochs) == 5 > trainer.history.best_epoch + 1
    trainer.fit()  # nothing is left to do, and the checkpoint keeps the last epoch's weights
    longer = Trainer(freedom_dvib(data, seed=99), data, options, tmp_path, progress=False)
    longer.fit(resume=True)
    assert_same_run(longer, train(freedom_dvib(data), data, options))


def test_finished_run_is_not_trained_again(data: HeteroData, tmp_path: Path) -> None:
    first = train(lightgcn(data), data, folder=tmp_path)
    again = Trainer(lightgcn(data, seed=99), data, OPTIONS, tmp_path, progress=False)
    again.fit(resume=True)
    assert again.history == first.history  # seconds too
    assert_same_run(again, first)


def test_resume_without_a_checkpoint_starts_anew(data: HeteroData, tmp_path: Path) -> None:
    trainer = Trainer(lightgcn(data), data, OPTIONS, tmp_path, progress=False)
    trainer.fit(resume=True)
    assert_same_run(trainer, train(lightgcn(data), data))
    content = trainer.checkpoint.read_bytes()
    with pytest.raises(ValueError, match=r"is the checkpoint of another run: resume that run, or"):
        train(lightgcn(data), data, replace(OPTIONS, seed=1), folder=tmp_path)
    assert trainer.checkpoint.read_bytes() == content


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 256}, "batch_size: 512 there, 256 here"),
        ({"seed": 3}, "seed: 0 there, 3 here"),
        ({"decimals": 4, "patience": 9}, "patience: 20 there, 9 here; decimals: None there, 4"),
    ],
)
def test_other_options_are_refused(
    changes: dict[str, Any], message: str, data: HeteroData, tmp_path: Path
) -> None:
    train(lightgcn(data), data, replace(OPTIONS, epochs=1), folder=tmp_path)
    before = {name: x.clone() for name, x in lightgcn(data, seed=1).state_dict().items()}
    other = Trainer(
        lightgcn(data, seed=1), data, replace(OPTIONS, **changes), tmp_path, progress=False
    )
    with pytest.raises(ValueError, match=rf"belongs to another run \({message}"):
        other.fit(resume=True)
    assert other.history.epochs == []
    for name, tensor in other.objective.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_other_objective_or_data_are_refused(data: HeteroData, tmp_path: Path) -> None:
    def dvib(**options: Any) -> Objective:
        return Objective(LightGCN.from_data(data, embedding_dim=8, **options), DVIBc(std=0.1))

    train(dvib(), data, replace(OPTIONS, epochs=1), folder=tmp_path)

    def refused(objective: Objective, data: HeteroData, message: str) -> None:
        trainer = Trainer(objective, data, OPTIONS, tmp_path, progress=False)
        with pytest.raises(ValueError, match=message):
            trainer.fit(resume=True)

    refused(dvib(reg_weight=0.5), data, r"\(backbone.reg_weight: 0.0001 there, 0.5 here\)")
    refused(dvib(num_layers=1), data, r"num_layers: 2 there, 1 here\)")
    refused(lightgcn(data), data, r"DVIBc there, absent here")
    refused(Objective(dvib().backbone, DVIBc()), data, r"noise.std: 0.1 there, 0.001 here\)")
    refused(Objective(VBPR.from_data(data, embedding_dim=8)), data, r"; and \d+ more\)")
    other = copy.copy(data)
    edge_index = data[INTERACTS].edge_index
    other[INTERACTS].edge_index = edge_index[:, 1:]
    refused(dvib(), other, r"\(training pairs: \w+ there, \w+ here\)")


def test_another_item_graph_is_refused(data: HeteroData, tmp_path: Path) -> None:
    def given(seed: int) -> HeteroData:
        with_graph = copy.copy(data)
        for name in ("image", "text"):
            generator = torch.Generator().manual_seed(seed)
            edge_index = torch.randint(90, (2, 200), generator=generator)
            store = with_graph[name, "similar", name]
            store.edge_index, store.edge_weight, store.k = edge_index, torch.ones(200), 5
            store.fingerprint = None
            del with_graph[name].x
        return with_graph

    def freedom() -> Objective:
        return Objective(FREEDOM.from_data(given(0), embedding_dim=8, k=5, reg_weight=0.0))

    train(freedom(), given(0), replace(OPTIONS, epochs=1), folder=tmp_path)
    other = Trainer(freedom(), given(1), OPTIONS, tmp_path, progress=False)
    with pytest.raises(
        ValueError, match=r"edge_index of \('image', 'similar', 'image'\): \w+ there"
    ):
        other.fit(resume=True)


def test_what_a_backbone_counts_is_no_difference(data: HeteroData, tmp_path: Path) -> None:
    class Counting(LightGCN):
        calls = 0

        def loss(self, *args: Any) -> dict[str, Tensor]:
            self.calls += 1
            return super().loss(*args)

    def counting() -> Objective:
        return Objective(Counting.from_data(data, embedding_dim=8))

    train(counting(), data, replace(OPTIONS, epochs=1), folder=tmp_path)
    trainer = Trainer(counting(), data, replace(OPTIONS, epochs=2), tmp_path, progress=False)
    assert len(trainer.fit(resume=True).epochs) == 2


def test_damaged_checkpoint_is_refused(data: HeteroData, tmp_path: Path) -> None:
    trainer = train(lightgcn(data), data, replace(OPTIONS, epochs=1), folder=tmp_path)
    content = trainer.checkpoint.read_bytes()
    trainer.checkpoint.write_bytes(content[:-5])
    with pytest.raises(ValueError, match=r"checkpoint.safetensors' is not a checkpoint"):
        Trainer(lightgcn(data), data, OPTIONS, tmp_path, progress=False).fit(resume=True)


def test_another_start_is_refused(data: HeteroData, tmp_path: Path) -> None:
    options = replace(OPTIONS, epochs=1)
    start = {"start_from": "runs/a"}
    Trainer(lightgcn(data), data, options, tmp_path, progress=False, identity=start).fit()
    for identity, message in (
        ({"start_from": "runs/b"}, "start_from: runs/a there, runs/b here"),
        (None, "start_from: runs/a there, absent here"),
    ):
        other = Trainer(lightgcn(data), data, options, tmp_path, progress=False, identity=identity)
        with pytest.raises(ValueError, match=message):
            other.fit(resume=True)


def test_slow_epochs_leave_a_checkpoint_each(data, tmp_path, monkeypatch):
    trainer = Trainer(lightgcn(data), data, OPTIONS, tmp_path, progress=False)
    interrupt(monkeypatch, trainer, 1)  # of two between checkpoints
    assert not trainer.checkpoint.exists()
    monkeypatch.setattr("pyg_mmrec.training.trainer._CHECKPOINT_SECONDS", 0)
    trainer = Trainer(lightgcn(data), data, OPTIONS, tmp_path, progress=False)
    interrupt(monkeypatch, trainer, 1)
    assert len(load_checkpoint(trainer.checkpoint)[1]["history"]["epochs"]) == 1
