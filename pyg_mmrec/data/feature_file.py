from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_FEATURE_FILE = re.compile(r"(?P<modality>.+)_feat\.npy")
_GRAPH_FILE = re.compile(r"(?P<modality>.+)_knn(?P<k>[0-9]+)\.npz")
_MODALITY = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_CHUNK_ELEMENTS = 1 << 22
_COSINE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class ModalityFeatures:
    r"""Features of one modality, row = item id.

    Args:
        x (Tensor): Features, float32; a row of zeros where an item lacks the modality.
        mask (Tensor, optional): Which items have the modality, boolean. :obj:`None` if all do.
            (default: :obj:`None`)

    Shapes:
        - **x:** :math:`(N, F)`
        - **mask:** :math:`(N,)`
    """

    x: Tensor
    mask: Tensor | None = None


@dataclass(frozen=True)
class NeighborGraph:
    r"""A directed nearest-neighbour graph over items.

    Args:
        edge_index (Tensor): Neighbour (source) and item (target), sorted by item, then by
            decreasing similarity.
        cosine (Tensor): Cosine similarity of every edge, float32.
        k (int): Neighbours asked for per item.

    Shapes:
        - **edge_index:** :math:`(2, E)`
        - **cosine:** :math:`(E,)`
    """

    edge_index: Tensor
    cosine: Tensor
    k: int


def find_features(folder: str | os.PathLike[str]) -> dict[str, Path]:
    r"""Finds the files :obj:`<modality>_feat.npy` of a folder, by modality.

    Args:
        folder (str): The dataset's folder.

    Raises:
        ValueError: If a modality is called user or item, or is not a plain name.
    """
    found: dict[str, Path] = {}
    for path, match in _matching(Path(folder), _FEATURE_FILE):
        found[_modality_name(path, match)] = path
    return found


def find_graphs(folder: str | os.PathLike[str]) -> dict[str, Path]:
    r"""Finds the files :obj:`<modality>_knn<k>.npz` of a folder, the largest :obj:`k` of each.

    Args:
        folder (str): The dataset's folder.

    Raises:
        ValueError: If a modality is called user or item, or is not a plain name.
    """
    best: dict[str, tuple[int, Path]] = {}
    for path, match in _matching(Path(folder), _GRAPH_FILE):
        modality, k = _modality_name(path, match), int(match["k"])
        if modality not in best or k > best[modality][0]:
            best[modality] = (k, path)
    return {modality: path for modality, (_, path) in best.items()}


def find_misnamed(folder: str | os.PathLike[str]) -> list[str]:
    r"""Finds files that look like features or item graphs, but are not named so.

    Args:
        folder (str): The dataset's folder.
    """
    return sorted(
        path.name
        for path in Path(folder).iterdir()
        if re.search(r"(feat|knn).*\.np[yz]$", path.name, re.IGNORECASE)
        and not _FEATURE_FILE.fullmatch(path.name)
        and not _GRAPH_FILE.fullmatch(path.name)
    )


def load_features(path: str | os.PathLike[str], on_invalid: str = "error") -> ModalityFeatures:
    r"""Loads a feature matrix from a :obj:`.npy` file as float32.

    The file is memory-mapped; a float32 file stays so (copy-on-write: the file never changes).
    Rows of zeros are legal.

    Args:
        path (str): The file: float16, float32 or float64, one row per item.
        on_invalid (str): What a NaN or infinite value does: :obj:`"error"` raises,
            :obj:`"mask"` treats the item as lacking the modality. (default: :obj:`"error"`)

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is not a plain :obj:`.npy` matrix of floating-point numbers
            (pickles and object arrays are refused), if a value is not finite and
            :obj:`on_invalid="error"`, or if no row is left.
    """
    if on_invalid not in ("error", "mask"):
        raise ValueError(f"'on_invalid' needs to be 'error' or 'mask' (got '{on_invalid}')")
    path = Path(path)
    stored = _map_array(path)
    if stored.dtype.newbyteorder("=") == np.float32 and stored.flags.c_contiguous:
        native = stored.dtype.isnative
        values = stored if native else stored.astype(np.float32)
    else:
        values = np.empty(stored.shape, dtype=np.float32)
    valid = np.ones(stored.shape[0], dtype=bool)
    step = max(1, _CHUNK_ELEMENTS // stored.shape[1])
    for start in range(0, stored.shape[0], step):
        chunk = values[start : start + step]
        if values is not stored:
            with np.errstate(over="ignore"):
                chunk[...] = stored[start : start + step]
        finite = np.isfinite(chunk)
        rows = finite.all(axis=1)
        if rows.all():
            continue
        if on_invalid == "error":
            row, column = (int(position[0]) for position in np.nonzero(~finite))
            raise ValueError(
                f"'{path}', row {start + row}, column {column}: expected a finite float32 number "
                f"(got {stored[start + row, column]}); on_invalid='mask' treats such items as "
                f"lacking the modality"
            )
        chunk[~rows] = 0
        valid[start : start + step] = rows
    if not valid.any():
        raise ValueError(f"'{path}' has no row of finite numbers")
    x = torch.from_numpy(np.asarray(values))
    return ModalityFeatures(x, None if valid.all() else torch.from_numpy(valid))


def load_graph(path: str | os.PathLike[str]) -> tuple[NeighborGraph, int]:
    r"""Loads an item graph computed before, and the number of items it covers.

    The file holds :obj:`index` (integers, the neighbours of every item, -1 for none) and
    :obj:`cosine` (their similarities), both of shape :math:`(N, k)`.

    Args:
        path (str): The file :obj:`<modality>_knn<k>.npz`.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If an array is missing, pickled, or of another shape or type, if an index is
            out of range or occurs twice in a row, or if a similarity is not a cosine.
    """
    path = Path(path)
    match = _GRAPH_FILE.fullmatch(path.name)
    arrays = _load_archive(path, ("index", "cosine"))
    index, cosine = arrays["index"], arrays["cosine"]
    if index.ndim != 2 or index.dtype.kind not in "iu" or 0 in index.shape:
        raise ValueError(
            f"'{path}': 'index' needs to be an integer matrix (got {index.dtype} {index.shape})"
        )
    if cosine.shape != index.shape or cosine.dtype.kind != "f":
        raise ValueError(
            f"'{path}': 'cosine' needs to be a floating-point matrix of shape {index.shape} "
            f"(got {cosine.dtype} {cosine.shape})"
        )
    num_items, k = index.shape
    if match is not None and int(match["k"]) != k:
        raise ValueError(f"'{path}': expected {match['k']} columns, as its name says (got {k})")
    present = index >= 0
    _check_entries(path, "index", (index < -1) | (index >= num_items), index,
                   f"an item from 0 to {num_items - 1}, or -1")  # fmt: skip
    in_range = np.abs(cosine) <= 1 + _COSINE_TOLERANCE  # False for NaN
    _check_entries(path, "cosine", present & ~in_range, cosine, "a number from -1 to 1")
    ascending = np.sort(index, axis=1)
    twice = (ascending[:, 1:] == ascending[:, :-1]) & (ascending[:, 1:] >= 0)
    if twice.any():
        row, column = (int(position[0]) for position in np.nonzero(twice))
        raise ValueError(
            f"'{path}': 'index' row {row} names item {ascending[row, column]} more than once"
        )
    # Stable, so that ties stay in the file's order; missing neighbours last.
    order = np.argsort(np.where(present, -cosine.astype(np.float32), np.inf), 1, kind="stable")
    present = np.take_along_axis(present, order, 1)
    source = np.take_along_axis(index, order, 1)[present].astype(np.int64)
    target = np.nonzero(present)[0].astype(np.int64)
    weight = np.take_along_axis(cosine, order, 1)[present].astype(np.float32)
    edge_index = torch.from_numpy(np.stack([source, target]))
    return NeighborGraph(edge_index, torch.from_numpy(weight), k), num_items


def read_num_rows(path: str | os.PathLike[str]) -> int:
    r"""Returns the number of items of a feature or graph file, reading only its header.

    Args:
        path (str): The file :obj:`<modality>_feat.npy` or :obj:`<modality>_knn<k>.npz`.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: As in :func:`load_features` and :func:`load_graph`.
    """
    path = Path(path)
    if path.suffix != ".npz":
        return int(_map_array(path).shape[0])
    _check_archive(path)
    try:
        with zipfile.ZipFile(path) as archive, archive.open("index.npy") as file:
            shape, _ = _read_array_header(file)
    except (KeyError, ValueError) as error:
        raise ValueError(f"'{path}': no readable array 'index' ({error})") from None
    if not shape:
        raise ValueError(f"'{path}': 'index' needs to be an integer matrix (got shape {shape})")
    return int(shape[0])


def _matching(folder: Path, pattern: re.Pattern[str]) -> Iterator[tuple[Path, re.Match[str]]]:
    for path in sorted(folder.iterdir()):
        match = pattern.fullmatch(path.name)
        if match is not None:
            yield path, match


def _modality_name(path: Path, match: re.Match[str]) -> str:
    modality = match["modality"]
    if modality in ("user", "item") or _MODALITY.fullmatch(modality) is None:
        raise ValueError(
            f"'{path}': a modality needs a name of letters, digits and underscores other than "
            f"'user' and 'item' (got '{modality}')"
        )
    return modality


def _map_array(path: Path) -> npt.NDArray[Any]:
    if not path.is_file():
        raise FileNotFoundError(f"'{path}' does not exist; expected a feature file")
    try:
        with open(path, "rb") as file:
            shape, dtype = _read_array_header(file)
    except ValueError as error:
        raise ValueError(
            f"'{path}': expected a plain .npy array; pickles are refused ({error})"
        ) from None
    if dtype.hasobject:
        raise ValueError(f"'{path}': expected numbers; object arrays are pickles and are refused")
    if dtype.kind != "f" or dtype.itemsize not in (2, 4, 8):
        raise ValueError(f"'{path}': expected float16, float32 or float64 (got {dtype})")
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"'{path}': expected a matrix of items times features (got {shape})")
    try:
        return np.lib.format.open_memmap(path, mode="c")
    except (ValueError, OSError) as error:
        raise ValueError(f"'{path}': the file ends before its data ({error})") from None


def _read_array_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    return shape, dtype


def _check_archive(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"'{path}' does not exist; expected an item graph")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"'{path}': expected a .npz archive with the arrays 'index' and 'cosine'")


def _load_archive(path: Path, names: tuple[str, ...]) -> dict[str, npt.NDArray[Any]]:
    _check_archive(path)
    arrays = {}
    with np.load(path, allow_pickle=False) as archive:
        for name in names:
            if name not in archive.files:
                raise ValueError(f"'{path}': no array '{name}' (found {sorted(archive.files)})")
            try:
                arrays[name] = archive[name]
            except (ValueError, OSError, zipfile.BadZipFile) as error:
                raise ValueError(
                    f"'{path}': array '{name}' cannot be read; pickles are refused ({error})"
                ) from None
    return arrays


def _check_entries(
    path: Path,
    name: str,
    bad: npt.NDArray[np.bool_],
    values: npt.NDArray[Any],
    expected: str,
) -> None:
    if bad.any():
        row, column = (int(position[0]) for position in np.nonzero(bad))
        raise ValueError(
            f"'{path}': '{name}' row {row}, column {column}: expected {expected} "
            f"(got {values[row, column]})"
        )
