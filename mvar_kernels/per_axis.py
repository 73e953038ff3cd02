"""Arguments with one value, or one per axis of a grid."""

from __future__ import annotations

import operator
from typing import Any

Grid = tuple[int, ...]
Flags = tuple[bool, ...]

_SHAPES = {1: "(length,) tuple", 2: "(rows, columns) pair", 3: "(frames, rows, columns) triple"}


def as_grid(value: object, rank: int, name: str) -> Grid:
    """Turn an int or one int per axis into a tuple, each at least 1; errors blame the argument `name`."""
    if type(value) is int and value >= 1:  # every call of a small grid's attention comes through here
        return (value,) * rank
    numbers = tuple(as_int(entry, name) for entry in _per_axis(value, rank, name, "an int"))
    if min(numbers) < 1:
        raise ValueError(f"{name} must be at least 1, got {plain(value)!r}")
    return numbers


def as_flags(value: object, rank: int, name: str) -> Flags:
    """Turn a bool or one bool per axis into a tuple; errors blame the argument `name`."""
    if isinstance(value, bool):
        return (value,) * rank
    flags = _per_axis(value, rank, name, "a bool")
    if not all(isinstance(flag, bool) for flag in flags):
        raise TypeError(f"{name} must be a bool or a tuple of bools, got {value!r}")
    return flags


def _per_axis(value: object, rank: int, name: str, single: str) -> tuple[Any, ...]:
    value = plain(value)
    entries = tuple(value) if isinstance(value, (tuple, list)) else (value,) * rank
    if len(entries) != rank:
        raise ValueError(f"{name} must be {single} or a {_SHAPES[rank]}, got {value!r}")
    return entries


def plain(value: object) -> object:
    """Turn arrays, tensors and their scalars into lists and numbers."""
    return value.tolist() if hasattr(value, "tolist") else value


def as_int(value: object, name: str) -> int:
    value = plain(value)
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {value!r}")
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be an int or a tuple of ints, got {value!r}") from None
