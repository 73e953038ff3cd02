"""Cuts of an axis into queries with the keys that they see, or keys with the queries that see them.

Windows never move back along an axis (`neighborhood.AxisWindows`). So a run of queries sees a run of keys,
and a run of keys is seen by a run of queries: boxes map to boxes. All ranges are of places in that order.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from mvar_kernels import caches
from mvar_kernels.pyramid import WindowBlock


class AxisCut(NamedTuple):
    """A run of queries and a run of keys along one axis."""

    queries: range
    keys: range


class GridTile(NamedTuple):
    """A box of a block's query grid and one of its key grid, as ranges along each axis."""

    queries: tuple[range, ...]
    keys: tuple[range, ...]


@caches.remembered(1024)
def query_cuts(block: WindowBlock, axis: int, step: int) -> tuple[AxisCut, ...]:
    """Cut an axis into runs of at most `step` queries, with the keys that they see."""
    _, starts, stops = block.axis(axis)
    return tuple(
        AxisCut(queries, range(int(starts[queries[0]]), int(stops[queries[-1]])))
        for queries in _runs(block.query_grid[axis], step)
    )


@caches.remembered(1024)
def key_cuts(block: WindowBlock, axis: int, step: int) -> tuple[AxisCut, ...]:
    """Cut an axis into runs of at most `step` keys, with the queries that see one; there may be none."""
    _, starts, stops = block.axis(axis)
    cuts = []
    for keys in _runs(block.key_grid[axis], step):
        first = int(np.searchsorted(stops, keys.start, side="right"))
        cuts.append(AxisCut(range(first, max(first, int(np.searchsorted(starts, keys.stop)))), keys))
    return tuple(cuts)


def _runs(length: int, step: int) -> list[range]:
    return [range(first, min(first + step, length)) for first in range(0, length, step)]


def query_tiles(block: WindowBlock, shape: tuple[int, ...]) -> list[GridTile]:
    """Cut the block's queries into boxes of at most that shape, row-major."""
    cuts = (query_cuts(block, axis, step) for axis, step in enumerate(shape))
    return [
        GridTile(tuple(cut.queries for cut in each), tuple(cut.keys for cut in each))
        for each in itertools.product(*cuts)
    ]
