"""Short runs to compare."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch_geometric.data import HeteroData

from pyg_mmrec.nn.backbones import FREEDOM, LightGCN
from pyg_mmrec.nn.objectives import DVIBa, Objective
from pyg_mmrec.training import Trainer, TrainingOptions

OPTIONS = TrainingOptions(
    learning_rate=0.02, lr_decay=0.9, batch_size=512, epochs=7, checkpoint_epochs=2
)


def lightgcn(data: HeteroData, seed: int = 0) -> Objective:
    torch.manual_seed(seed)
    return Objective(LightGCN.from_data(data, embedding_dim=8))


def freedom_dvib(data: HeteroData, seed: int = 0) -> Objective:
    torch.manual_seed(seed)
    return Objective(FREEDOM.from_data(data, embedding_dim=8, k=5, edge_dropout=0.5), DVIBa())


def train(
    objective: Objective, data: HeteroData, options: TrainingOptions = OPTIONS, **kwargs: Any
) -> Trainer:
    trainer = Trainer(objective, data, options, progress=False, **kwargs)
    trainer.fit()
    return trainer


def metrics(trainer: Trainer) -> list[dict[str, Any]]:
    """The history without the clock."""
    return [{**epoch, "seconds": None} for epoch in trainer.history.epochs]


def assert_same_run(one: Trainer, other: Trainer) -> None:
    """Bit for bit: weights, best weights, optimiser, random states, history, metrics."""
    assert metrics(one) == metrics(other)
    assert one.history.best_epoch == other.history.best_epoch
    states = []
    for trainer in (one, other):
        adam = trainer.optimizers["adam"].state_dict()["state"]
        state = {f"adam/{i}/{k}": x for i, slots in adam.items() for k, x in slots.items()}
        state |= trainer.objective.state_dict()
        state |= {name: g.get_state() for name, g in trainer.generators.items()}
        states.append(state)
    assert states[0].keys() == states[1].keys() and len(states[0]) >= 10
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
    assert one.evaluate("test") == other.evaluate("test")


def interrupt(monkeypatch: pytest.MonkeyPatch, trainer: Trainer, epoch: int) -> None:
    """Ctrl-C in the second step of an epoch, between its backward pass and the update."""
    steps = {"in epoch": 0}
    original = torch.optim.Adam.step

    def step(optimizer: torch.optim.Adam, *args: Any) -> Any:
        steps["in epoch"] += 1
        if len(trainer.history.epochs) == epoch and steps["in epoch"] % 2 == 0:
            raise KeyboardInterrupt
        return original(optimizer, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch.optim.Adam, "step", step)
        trainer.fit(resume=True)
    assert len(trainer.history.epochs) == epoch
