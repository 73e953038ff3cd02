"""Rectangles of queries with the rectangle of keys that they see, and rectangles of keys with the queries
that see them.

Window starts never decrease along an axis. So a run of queries sees a run of keys, and a run of keys is seen
by a run of
queries: rectangles map to rectangles.
"""

from __future__ import annotations

from typing import NamedTuple

from mvar_kernels import caches
from mvar_kernels.pyramid import WindowBlock


class GridTile(NamedTuple):
    """A rectangle of a block's query grid and one of its key grid, as ranges of rows and columns."""

    query_rows: range
    query_cols: range
    key_rows: range
    key_cols: range


@caches.remembered(4096)
def seen_by(block: WindowBlock, axis: int, first: int, last: int) -> range:
    """Return the keys along an axis that the queries first .. last - 1 see."""
    starts = block.axis_starts(axis)
    return range(starts[first], starts[last - 1] + block.window[axis])


@caches.remembered(4096)
def seeing(block: WindowBlock, axis: int, first: int, last: int) -> range:
    """Return the queries along an axis that see one of the keys first .. last - 1; may be empty."""
    window = block.window[axis]
    starts = block.axis_starts(axis)
    queries = [query for query, start in enumerate(starts) if start < last and start + window > first]
    return range(queries[0], queries[-1] + 1) if queries else range(0)


def _cuts(length: int, step: int) -> list[tuple[int, int]]:
    return [(first, min(first + step, length)) for first in range(0, length, step)]


def query_tiles(block: WindowBlock, height: int, width: int) -> list[GridTile]:
    """Cut the block's queries into rectangles of at most height x width."""
    return [
        GridTile(range(*rows), range(*cols), seen_by(block, 0, *rows), seen_by(block, 1, *cols))
        for rows in _cuts(block.query_grid[0], height)
        for cols in _cuts(block.query_grid[1], width)
    ]


def key_tiles(block: WindowBlock, height: int, width: int) -> list[GridTile]:
    """Cut the block's keys into rectangles of at most height x width; unseen ones have empty query ranges."""
    return [
        GridTile(seeing(block, 0, *rows), seeing(block, 1, *cols), range(*rows), range(*cols))
        for rows in _cuts(block.key_grid[0], height)
        for cols in _cuts(block.key_grid[1], width)
    ]
