"""Checks of constructor arguments, each with one clear error."""

from __future__ import annotations

from collections.abc import Sequence


def check_positive(name: str, value: int) -> None:
    """Raises a :class:`ValueError` unless ``value`` is a positive integer."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"'{name}' needs to be a positive integer (got {value!r})")


def check_weight(name: str, value: float) -> None:
    """Raises a :class:`ValueError` unless ``value`` is a number of 0 or more."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise ValueError(f"'{name}' needs to be a number of 0 or more (got {value!r})")


def check_rate(name: str, value: float) -> None:
    """Raises a :class:`ValueError` unless ``value`` is a number in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ValueError(f"'{name}' needs to lie in [0, 1) (got {value!r})")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises a :class:`ValueError` unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"'{name}' needs to be one of {list(choices)} (got {value!r})")
