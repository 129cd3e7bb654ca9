from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from pyg_mmrec.training import checkpoint, load_checkpoint, save_checkpoint
from pyg_mmrec.training.checkpoint import read_json, save_tensors, write_json

TENSORS = {
    "weights": torch.arange(6.0).view(2, 3),
    "strided": torch.arange(6.0, dtype=torch.float64).view(2, 3).t(),
    "step": torch.tensor(3.0),
    "random": torch.Generator().manual_seed(1).get_state(),
    "empty": torch.empty(0, 4, dtype=torch.int64),
}
STATE = {"history": [{"loss": 0.1 + 0.2}], "best": float("-inf"), "text": "ä", "none": None}


def test_round_trip_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "new" / "checkpoint.safetensors"
    save_checkpoint(path, TENSORS, STATE)
    tensors, state = load_checkpoint(path)
    assert state == STATE
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(tensors[name], tensor) and tensors[name].dtype == tensor.dtype
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_parameters_are_saved_without_their_graph(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    save_checkpoint(tmp_path / "c", {"weight": weight * 2}, {})
    assert load_checkpoint(tmp_path / "c")[0]["weight"].tolist() == [2, 2]


@pytest.mark.parametrize("place", ["while writing", "before it is on disk", "before the rename"])
def test_crash_while_saving_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, TENSORS, STATE)
    before = path.read_bytes()

    def crash(*args: Any, **kwargs: Any) -> None:
        if place == "while writing":
            Path(args[1]).write_bytes(before[:40])
        raise KeyboardInterrupt

    target = {
        "while writing": (checkpoint, "save_file"),
        "before it is on disk": (checkpoint.os, "fsync"),
        "before the rename": (checkpoint.os, "replace"),
    }[place]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(*target, crash)
        save_checkpoint(path, {"other": torch.zeros(9)}, {"other": 1})
    assert path.read_bytes() == before
    assert load_checkpoint(path)[1] == STATE
    save_checkpoint(path, {"other": torch.zeros(9)}, {"other": 1})  # over what the crash left
    assert load_checkpoint(path)[1] == {"other": 1}


@pytest.mark.parametrize("damage", ["empty", "cut", "random", "pickle", "torch", "no state"])
def test_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, TENSORS, STATE)
    if damage == "torch":
        torch.save(TENSORS, path)
    elif damage == "no state":
        save_file({"x": torch.ones(1)}, path)
    else:
        content = path.read_bytes()
        path.write_bytes(
            {
                "empty": b"",
                "cut": content[:-1],
                "random": bytes(range(256)) * 4,
                "pickle": pickle.dumps(STATE),
            }[damage]
        )
    with pytest.raises(ValueError, match=r"checkpoint.safetensors' is not a checkpoint"):
        load_checkpoint(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no checkpoint '.*absent'"):
        load_checkpoint(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        load_checkpoint(tmp_path)


def test_nothing_is_pickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a pickle was written or read")

    for module, name in ((torch, "save"), (torch, "load"), (pickle, "dump"), (pickle, "dumps"),
                         (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):  # fmt: skip
        monkeypatch.setattr(module, name, refuse)
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, TENSORS, STATE)
    load_checkpoint(path)
    # The format: the header's length, a JSON header, then the raw tensors.
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert header.keys() == {*TENSORS, "__metadata__"}
    total = sum(tensor.numel() * tensor.element_size() for tensor in TENSORS.values())
    assert len(content) == 8 + length + total


def test_json_is_written_wholly_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "result.json"
    write_json(path, {"a": 0.1 + 0.2})
    assert read_json(path) == {"a": 0.1 + 0.2}
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 0.1 + 0.2}
    path.write_text('{"a":')
    with pytest.raises(ValueError, match=r"result.json' is not JSON"):
        read_json(path)


def test_tied_tensors_are_written(tmp_path):
    weight = torch.randn(4, 3)
    save_checkpoint(
        tmp_path / "c.safetensors", {"one": weight, "tied": weight, "row": weight[1]}, {}
    )
    tensors, _ = load_checkpoint(tmp_path / "c.safetensors")
    assert torch.equal(tensors["tied"], weight) and torch.equal(tensors["row"], weight[1])


def test_others_may_read_what_a_new_file_lets_them(tmp_path):
    (tmp_path / "any").touch()
    save_tensors(tmp_path / "x.safetensors", {"x": torch.zeros(2)})
    assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "any").stat().st_mode


def test_what_cannot_be_written_is_one_error_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr("pyg_mmrec.training.checkpoint.save_file", full)
    with pytest.raises(OSError, match="cannot write '.*x.safetensors' .*No space left"):
        save_tensors(tmp_path / "x.safetensors", {"x": torch.zeros(2)})
    assert list(tmp_path.iterdir()) == []
