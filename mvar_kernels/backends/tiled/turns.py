"""The order of a block's tiles: turns within which no two tiles see a common key.

Gradients of keys are summed over tiles. Tiles of one turn may do so at the same time, and a turn after the
other, so that every key gets its summands in one order on any number of cores.
"""

from __future__ import annotations

from itertools import product

from mvar_kernels.backends.common.rectangles import GridTile

# Tiles per turn, where the grid has that many. More turns would keep threads waiting, fewer would spread the
# tiles that see one key over so long a time that it has left the cache.
_TILES_PER_TURN = 16


def in_turns(tiles: list[GridTile]) -> list[list[GridTile]]:
    """Cut a block's tiles, row-major, into turns of tiles whose keys do not overlap."""
    rows = {tile.query_rows.start: tile.key_rows for tile in tiles}
    cols = {tile.query_cols.start: tile.key_cols for tile in tiles}
    row_step, col_step = _step(list(rows.values())), _step(list(cols.values()))
    tiles_per_row = -(-len(cols) // col_step)
    band = row_step * -(-_TILES_PER_TURN // tiles_per_row)
    turns = []
    for top, row, col in product(range(0, len(rows), band), range(row_step), range(col_step)):
        turns.append(
            [
                tiles[i * len(cols) + j]
                for i in range(top + row, min(top + band, len(rows)), row_step)
                for j in range(col, len(cols), col_step)
            ]
        )
    return [turn for turn in turns if turn]


def _step(seen: list[range]) -> int:
    """Return the least distance at which ranges of keys, in order, no longer overlap."""
    step = 1
    while any(first.stop > later.start for first, later in zip(seen, seen[step:])):
        step += 1
    return step
