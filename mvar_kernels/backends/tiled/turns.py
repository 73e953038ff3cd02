"""The order of a block's tiles: turns within which no two tiles see a common key.

Gradients of keys are summed over tiles. Tiles of one turn may do so at the same time, and a turn after the
other, so that every key gets its summands in one order on any number of cores.
"""

from __future__ import annotations

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
    per_axis = [
        [{queries.start: keys for queries, keys in axis} for axis in axes]
        for axes in zip(*(([t[::2] for t in tiles], [t[1::2] for t in tiles]) for tiles in per_block))
    ]
    (rows, height), (cols, width) = ((_step(seen), len(seen[0])) for seen in per_axis)
    band = rows * -(-_TILES_PER_TURN // -(-width // cols))
    turns = [
        [
            i * width + j
            for i in range(top + row, min(top + band, height), rows)
            for j in range(col, width, cols)
        ]
        for top, row, col in product(range(0, height, band), range(rows), range(cols))
    ]
    return [turn for turn in turns if turn]


def _step(per_block: list[dict[int, range]]) -> int:
    """Return the least distance at which ranges of keys, in order, no longer overlap in any block."""
    step = 1
    for seen in map(list, map(dict.values, per_block)):
        while any(first.stop > later.start for first, later in zip(seen, seen[step:])):
            step += 1
    return step
