"""What `make test` leaves out of long tables, and `MVAR_EVERYTHING=1 make test` runs.

A choice differs from run to run. Its tests' names say what was chosen, and MVAR_EVERYTHING=1 has them all.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

EVERYTHING = bool(os.environ.get("MVAR_EVERYTHING"))
# All workers of one run collect the same tests, so they share the seed.
_SEED = (
    os.environ.get("MVAR_TEST_SEED")
    or os.environ.get("PYTEST_XDIST_TESTRUNUID")
    or str(random.SystemRandom().random())
)

T = TypeVar("T")


def some(items: Iterable[T], count: int) -> list[T]:
    """Return `count` random items in their order, all with MVAR_EVERYTHING=1."""
    items = list(items)
    if EVERYTHING or count >= len(items):
        return items
    chosen = random.Random(_SEED).sample(range(len(items)), count)
    return [items[index] for index in sorted(chosen)]


def once(*axes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Return rows in which every value of every axis occurs, the whole product with MVAR_EVERYTHING=1."""
    rows = _product(axes)
    return _values(axes, rows if EVERYTHING else _cover(rows, 1))


def pairwise(*axes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Return rows in which any two values of two axes meet, the whole product with MVAR_EVERYTHING=1."""
    rows = _product(axes)
    return _values(axes, rows if EVERYTHING else _cover(rows, 2))


def _product(axes: Sequence[Sequence[Any]]) -> list[tuple[int, ...]]:
    return list(itertools.product(*(range(len(axis)) for axis in axes)))


def _values(axes: Sequence[Sequence[Any]], rows: list[tuple[int, ...]]) -> list[tuple[Any, ...]]:
    return [tuple(axis[index] for axis, index in zip(axes, row, strict=True)) for row in rows]


def _cover(rows: list[tuple[int, ...]], size: int) -> list[tuple[int, ...]]:
    """Take greedily the row with most groups of `size` values that no other has, equals in random order."""
    groups = {row: set(itertools.combinations(enumerate(row), size)) for row in rows}
    left = set().union(*groups.values())
    random.Random(_SEED).shuffle(rows)
    taken = []
    while left:
        best = max(rows, key=lambda row: len(left & groups[row]))
        left -= groups[best]
        taken.append(best)
    return sorted(taken)
