"""Atomic files of tensors with a JSON state beside them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def save_checkpoint(path: Path | str, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Writes tensors and a JSON state into one safetensors file, wholly or not at all.

    Args:
        path (pathlib.Path): The file; an older one is replaced in one step.
        tensors (dict[str, torch.Tensor]): Tensors of any device.
        state (dict): Anything that JSON can hold.
    """
    save_tensors(path, tensors, {"state": json.dumps(state)})


def save_tensors(
    path: Path | str, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Writes a safetensors file, wholly or not at all; tied tensors are written twice.

    Raises:
        OSError: If it cannot be written, such as on a full disk.
    """
    path, partial = _with_partial(path)
    written: dict[str, Tensor] = {}
    storages = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        shared = tensor.untyped_storage().data_ptr() in storages
        written[name] = tensor.clone() if shared else tensor
        storages.add(tensor.untyped_storage().data_ptr())
    try:
        partial.touch()  # with the permissions of any new file, which safetensors would narrow
        mode = partial.stat().st_mode
        save_file(written, partial, metadata=metadata)
        partial.chmod(mode)
        write_through(partial)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise OSError(f"cannot write '{path}' ({error})") from error


def _with_partial(path: Path | str) -> tuple[Path, Path]:
    """A file, and where it is written before it gets its name: two processes, two places."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path, path.with_name(f".{path.name}.{os.getpid()}.partial")


def load_weights(module: nn.Module, path: Path | str) -> None:
    """Loads a safetensors file of weights into a module.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file holds other weights than the module's, by name or shape.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there are no weights '{path}'")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"'{path}' is no safetensors file ({error})") from error
    ours = {name: list(x.shape) for name, x in module.state_dict().items()}
    theirs = {name: list(x.shape) for name, x in tensors.items()}
    wrong = [
        f"{name} {theirs.get(name, 'absent')} there, {ours.get(name, 'absent')} here"
        for name in {**ours, **theirs}
        if theirs.get(name) != ours.get(name)
    ]
    if wrong:
        raise ValueError(
            f"'{path}' holds other weights than those of {type(module).__name__}: "
            f"{'; '.join(wrong[:5])}"
        )
    module.load_state_dict(tensors)


def load_checkpoint(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what :func:`save_checkpoint` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint '{path}'")
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads((file.metadata() or {})["state"])
            return {name: file.get_tensor(name) for name in file.keys()}, state  # noqa: SIM118
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"'{path}' is not a checkpoint of this library ({error})") from error


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """In what two descriptions differ, as ``name: a there, b here``."""
    return [
        f"{name}: {theirs.get(name, 'absent')} there, {ours.get(name, 'absent')} here"
        for name in {**ours, **theirs}
        if theirs.get(name, "absent") != ours.get(name, "absent")
    ]


def write_json(path: Path | str, content: Any) -> None:
    """Writes a JSON file, wholly or not at all."""
    path, partial = _with_partial(path)
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    write_through(partial)
    os.replace(partial, path)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file.

    Raises:
        ValueError: If it is not one.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"'{path}' is not JSON ({error})") from error


def write_through(path: Path) -> None:
    """Waits until a file's content has reached the disk."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
