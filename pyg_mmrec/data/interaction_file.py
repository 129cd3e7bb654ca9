from __future__ import annotations

import csv
import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

INTERACTION_COLUMNS: dict[str, str] = {
    "user": "userID",
    "item": "itemID",
    "label": "x_label",
    "rating": "rating",
    "time": "timestamp",
}
_REQUIRED = ("user", "item")
_MAX_ID = 2**31
_MAX_EXACT_FLOAT = 2.0**53
_MAX_IDS_PER_ROW = 100  # a row brings one new id at most: with more per row, they are no numbering
_SPLITS = "0 (training), 1 (validation) or 2 (test)"


@dataclass(frozen=True)
class Interactions:
    r"""Unique user–item pairs, sorted by user, then item.

    Args:
        user (Tensor): User ids, int64.
        item (Tensor): Item ids, int64.
        num_users (int): Number of users; ids lie below it.
        num_items (int): Number of items; ids lie below it.
        label (Tensor, optional): 0, 1, 2 for training, validation, test, int64.
            (default: :obj:`None`)
        rating (Tensor, optional): Ratings, float32. (default: :obj:`None`)
        time (Tensor, optional): Timestamps in the file's unit, int64. (default: :obj:`None`)
        dropped (Dict[str, int]): How many rows were left out, by reason.

    Shapes:
        All tensors are :math:`(E,)`.
    """

    user: Tensor
    item: Tensor
    num_users: int
    num_items: int
    label: Tensor | None = None
    rating: Tensor | None = None
    time: Tensor | None = None
    dropped: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.user.numel()


def read_interactions(
    path: str | os.PathLike[str],
    columns: Mapping[str, str | None] | None = None,
    *,
    num_users: int | None = None,
    num_items: int | None = None,
    num_items_source: str = "'num_items'",
) -> Interactions:
    r"""Reads a tab- or comma-separated interaction file with a header line.

    Of rows that repeat a user–item pair, the one with the smallest label is kept (training before
    validation before test), then the first in the file; the others are counted.

    Args:
        path (str): The file, usually :obj:`<name>.inter`.
        columns (Mapping[str, str], optional): Column names that differ from
            :data:`INTERACTION_COLUMNS`: ``user`` is "userID", ``item`` "itemID", ``label``
            "x_label", ``rating`` "rating" and ``time`` "timestamp". The last three are read if
            present; one that is named here has to be present, and one that is set to :obj:`None`
            is not read. (default: :obj:`None`)
        num_users (int, optional): Number of users. (default: largest id plus one)
        num_items (int, optional): Number of items. (default: largest id plus one)
        num_items_source (str): Where :obj:`num_items` comes from, for error messages.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the header lacks a column, if the file has no rows or cannot be parsed, if
            an id is not an integer in range, a label not 0, 1 or 2, a rating not a finite number,
            a timestamp not an integer; the message names file, line and column.
    """
    for name, number in (("num_users", num_users), ("num_items", num_items)):
        if number is not None and number < 1:
            raise ValueError(f"'{name}' needs to be a positive integer (got {number})")
    table = _Table(Path(path), columns)
    user = table.ids("user", num_users, "'num_users'")
    item = table.ids("item", num_items, num_items_source)
    label = table.labels() if "label" in table else None
    rating = table.ratings() if "rating" in table else None
    time = table.times() if "time" in table else None

    num_users = table.count("user", user) if num_users is None else num_users
    num_items = table.count("item", item) if num_items is None else num_items
    key = user * num_items + item  # below 2^62
    order = np.argsort(key, kind="stable") if label is None else np.lexsort((label, key))
    key = key[order]
    first = np.concatenate(([True], key[1:] != key[:-1]))
    dropped = {"duplicate_pairs": int(key.size - first.sum())}
    if label is not None:
        kept_label = label[order][first][np.cumsum(first) - 1]
        dropped["duplicate_pairs_across_splits"] = int((kept_label != label[order]).sum())
    kept = order[first]

    def select(values: npt.NDArray[np.generic] | None) -> Tensor | None:
        return None if values is None else torch.from_numpy(values[kept])

    return Interactions(
        user=torch.from_numpy(user[kept]),
        item=torch.from_numpy(item[kept]),
        num_users=num_users,
        num_items=num_items,
        label=select(label),
        rating=select(rating),
        time=select(time),
        dropped=dropped,
    )


def resolve_columns(columns: Mapping[str, str | None] | None) -> dict[str, str | None]:
    r"""Fills in the default column names.

    Args:
        columns (Mapping[str, str], optional): As in :func:`read_interactions`.

    Raises:
        ValueError: If a key is unknown, or a required column is set to :obj:`None`.
    """
    given = dict(columns or {})
    unknown = sorted(set(given).difference(INTERACTION_COLUMNS))
    if unknown:
        raise ValueError(
            f"'columns' knows the keys {list(INTERACTION_COLUMNS)} (got '{unknown[0]}')"
        )
    for role in _REQUIRED:
        if role in given and given[role] is None:
            raise ValueError(f"'columns' needs a column name for '{role}' (got None)")
    return {**INTERACTION_COLUMNS, **given}


def read_header(path: str | os.PathLike[str]) -> tuple[list[str], str]:
    r"""Returns the column names of an interaction file and its separator.

    Args:
        path (str): The file.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the first line contains neither a tab nor a comma, or is not text.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"'{path}' does not exist; expected an interaction file")
    try:
        with open(path, "rb") as file:
            line = file.readline().decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"'{path}', line 1: expected UTF-8 text ({error.reason})") from None
    separator = "\t" if "\t" in line else ","
    if separator not in line:
        raise ValueError(
            f"'{path}', line 1: expected a header with tab- or comma-separated column names "
            f"(got {line[:80]!r})"
        )
    return [name.strip() for name in next(_rows([line], separator))], separator


def _quoting(separator: str) -> Literal[0, 3]:
    """Between tabs a quotation mark is text like any other; between commas it quotes."""
    return csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL


def _rows(lines: Iterable[str], separator: str) -> Any:
    return csv.reader(lines, delimiter=separator, quoting=_quoting(separator))


class _Table:
    """The needed columns of one file; knows the file and line of every value for errors."""

    def __init__(self, path: Path, columns: Mapping[str, str | None] | None) -> None:
        names = resolve_columns(columns)
        self.path = path
        self.header, self.separator = read_header(path)
        self.position: dict[str, int] = {}
        for role, name in names.items():
            if name is None:
                continue
            count = self.header.count(name)
            if count == 1:
                self.position[role] = self.header.index(name)
            elif count > 1:
                raise ValueError(f"'{path}', line 1: column '{name}' occurs {count} times")
            elif role in _REQUIRED or role in (columns or {}):
                raise ValueError(f"'{path}', line 1: no column '{name}' (found {self.header})")
        self.frame = self._read()
        if len(self.frame) == 0:
            raise ValueError(f"'{path}' has a header, but no interactions")

    def __contains__(self, role: str) -> bool:
        return role in self.position

    def ids(self, role: str, count: int | None, source: str) -> npt.NDArray[np.int64]:
        if count is None:
            expected = "a non-negative integer below 2^31; 'pandas.factorize' numbers other ids"
            return self._integers(role, _MAX_ID, expected)
        return self._integers(role, count, f"an integer from 0 to {count - 1} (from {source})")

    def count(self, role: str, ids: npt.NDArray[np.int64]) -> int:
        """One more than the highest id; says so if ids below it never occur."""
        count = int(ids.max()) + 1
        name = self.header[self.position[role]]
        advice = f"number them from 0 without gaps, or say how many there are by 'num_{role}s'"
        if count > _MAX_IDS_PER_ROW * len(ids) + _MAX_IDS_PER_ROW:
            raise ValueError(
                f"'{self.path}', column '{name}': ids reach {count - 1} in {len(ids)} rows, so "
                f"nearly all {role}s would not exist; {advice}"
            )
        missing = np.flatnonzero(np.bincount(ids, minlength=count) == 0)
        if missing.size > 0:
            warnings.warn(
                f"'{self.path}', column '{name}': {missing.size} of {count} {role}s never occur, "
                f"the first is {missing[0]}, and yet are {role}s of the data; {advice}",
                stacklevel=3,
            )
        return count

    def labels(self) -> npt.NDArray[np.int64]:
        return self._integers("label", 3, _SPLITS)

    def ratings(self) -> npt.NDArray[np.float32]:
        with np.errstate(over="ignore"):
            values = self._numbers("rating").astype(np.float32)
        self._check("rating", ~np.isfinite(values), "a finite number")
        return values

    def times(self) -> npt.NDArray[np.int64]:
        values = self._numbers("time")
        if values.dtype != np.int64:
            values = values.astype(np.float64)
            bad = ~(np.abs(values) <= _MAX_EXACT_FLOAT) | (np.mod(values, 1) != 0)
            self._check("time", bad, "an integer timestamp")
        return values.astype(np.int64)

    def _integers(self, role: str, limit: int, expected: str) -> npt.NDArray[np.int64]:
        column = self.frame[self.position[role]]
        if column.dtype == np.int64:
            values = column.to_numpy(copy=True)
        else:
            # Eighteen digits fit into int64; a longer number is out of every range anyway.
            text = self._text(role)
            readable = text.str.fullmatch(r"[+-]?[0-9]{1,18}").to_numpy(dtype=bool)
            values = text.where(readable, "-1").astype(np.int64).to_numpy(copy=True)
        self._check(role, (values < 0) | (values >= limit), expected)
        return values

    def _numbers(self, role: str) -> npt.NDArray[np.generic]:
        column = self.frame[self.position[role]]
        if column.dtype.kind not in "iuf":
            column = pd.to_numeric(self._text(role), errors="coerce")
        return column.to_numpy(copy=True)

    def _check(self, role: str, bad: npt.NDArray[np.bool_], expected: str) -> None:
        if not bad.any():
            return
        row = int(bad.argmax())
        value = self._text(role).iloc[row]
        name = self.header[self.position[role]]
        way_out = (
            f"; columns={{'{role}': None}} leaves it out" if role in ("rating", "time") else ""
        )
        raise ValueError(
            f"'{self.path}', line {self._row(row)[1]}, column '{name}': expected {expected} "
            f"(got {value!r}){way_out}"
        )

    def _text(self, role: str) -> pd.Series[str]:
        return self._read(as_text=True)[self.position[role]].str.strip()

    def _read(self, as_text: bool = False) -> pd.DataFrame:
        # pandas holds every row to the length of the one before it, except the first.
        first, line = self._row(0)
        if len(first) > len(self.header):
            raise ValueError(
                f"'{self.path}', line {line}: expected {len(self.header)} fields, as in the "
                f"header (got {len(first)})"
            )
        try:
            # All columns are read: with 'usecols', pandas would cut longer rows silently.
            frame = pd.read_csv(
                self.path,
                sep=self.separator,
                quoting=_quoting(self.separator),
                engine="c",
                header=0,
                names=range(len(self.header)),
                index_col=False,
                dtype=str if as_text else None,
                na_filter=not as_text,
                encoding="utf-8-sig",
                low_memory=False,
            )
        except (pd.errors.ParserError, UnicodeDecodeError) as error:
            self._fail(error)
        return frame.fillna("") if as_text else frame

    def _fail(self, error: Exception) -> NoReturn:
        reason = str(error).replace("Error tokenizing data. C error: ", "").strip()
        raise ValueError(
            f"'{self.path}' cannot be read as rows of {len(self.header)} fields: {reason}"
        ) from None

    def _row(self, row: int) -> tuple[list[str], int]:
        """A data row and its 1-based line (blank lines and quoted line breaks count)."""
        with open(self.path, encoding="utf-8-sig", errors="replace", newline="") as file:
            reader = _rows(file, self.separator)
            rows = filter(lambda fields: len(fields) > 1 or "".join(fields).strip(), reader)
            try:
                return next(islice(rows, row + 1, None), []), reader.line_num
            except csv.Error as error:
                self._fail(error)
