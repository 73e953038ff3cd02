"""Rectangles of queries and the rectangle of keys that they see, and the other way round.

Window starts never decrease along an axis, so what a run of queries sees is a run of keys, and the queries that see a run of keys are a run.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from mvar_kernels.pyramid import Block


class Tile(NamedTuple):
    """Ranges of rows and columns in a block's query grid and key grid."""

    query_rows: range
    query_cols: range
    key_rows: range
    key_cols: range


@functools.lru_cache(maxsize=4096)
def seen_by(block: Block, axis: int, first: int, last: int) -> range:
    """Keys along an axis that the queries first .. last - 1 see."""
    starts = block.axis_starts(axis)
    return range(starts[first], starts[last - 1] + block.window[axis])


@functools.lru_cache(maxsize=4096)
def seeing(block: Block, axis: int, first: int, last: int) -> range:
    """Queries along an axis that see one of the keys first .. last - 1; may be empty."""
    window = block.window[axis]
    found = [
        query
        for query, start in enumerate(block.axis_starts(axis))
        if start < last and start + window > first
    ]
    return range(found[0], found[-1] + 1) if found else range(0)


def _cuts(length: int, step: int) -> list[tuple[int, int]]:
    return [(first, min(first + step, length)) for first in range(0, length, step)]


def query_tiles(block: Block, height: int, width: int) -> list[Tile]:
    """The block's queries cut into rectangles of at most height x width."""
    return [
        Tile(range(*rows), range(*cols), seen_by(block, 0, *rows), seen_by(block, 1, *cols))
        for rows in _cuts(block.query_grid[0], height)
        for cols in _cuts(block.query_grid[1], width)
    ]


def key_tiles(block: Block, height: int, width: int) -> list[Tile]:
    """The block's keys cut into rectangles of at most height x width; tiles that nobody sees have empty query ranges."""
    return [
        Tile(seeing(block, 0, *rows), seeing(block, 1, *cols), range(*rows), range(*cols))
        for rows in _cuts(block.key_grid[0], height)
        for cols in _cuts(block.key_grid[1], width)
    ]
