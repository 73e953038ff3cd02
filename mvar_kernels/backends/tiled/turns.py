"""The order of a block's tiles: turns within which no two tiles see a common key.

Gradients of keys are summed over tiles. Tiles of one turn may do so at the same time, and a turn after the
other, so that every key gets its summands in one order on any number of cores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

from mvar_kernels.backends.rectangles import GridTile

# Tiles per turn, where the grid has that many. More turns would keep threads waiting, fewer would spread the
# tiles that see one key over so long a time that it has left the cache.
_TILES_PER_TURN = 16


def in_turns(per_block: Sequence[Sequence[GridTile]]) -> list[list[int]]:
    """Cut tiles into turns without a common key.

    Args:
        per_block: the tiles, row-major, with the keys that they see in each block.

    Returns:
        The numbers of each turn's tiles.
    """
    rank = len(per_block[0][0].queries)
    # Per axis and block: the keys that each cut of the axis sees.
    per_axis = [
        [{tile.queries[axis].start: tile.keys[axis] for tile in tiles} for tiles in per_block]
        for axis in range(rank)
    ]
    steps, counts = [_step(seen) for seen in per_axis], [len(seen[0]) for seen in per_axis]
    # A turn takes every `step`-th cut of each axis, within a band of the first.
    others = math.prod(-(-count // step) for count, step in zip(counts[1:], steps[1:]))
    band = steps[0] * -(-_TILES_PER_TURN // others)
    turns = [
        [
            _number(places, counts)
            for places in product(
                range(top + begins[0], min(top + band, counts[0]), steps[0]),
                *(range(*each) for each in zip(begins[1:], counts[1:], steps[1:])),
            )
        ]
        for top in range(0, counts[0], band)
        for begins in product(*map(range, steps))
    ]
    return [turn for turn in turns if turn]


def _number(places: tuple[int, ...], counts: Sequence[int]) -> int:
    number = 0
    for place, count in zip(places, counts):
        number = number * count + place
    return number


def _step(per_block: list[dict[int, range]]) -> int:
    """Return the least distance at which ranges of keys, in order, no longer overlap in any block."""
    step = 1
    for seen in map(list, map(dict.values, per_block)):
        while any(first.stop > later.start for first, later in zip(seen, seen[step:])):
            step += 1
    return step
