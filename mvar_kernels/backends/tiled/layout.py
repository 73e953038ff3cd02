"""Which tokens each tile of a windowed block gathers, and which of them each query of the tile may see.

A tile is up to TILE x TILE queries. Its keys are one rectangle, the union of the queries' windows. A strip is
a few query rows of a tile, which attend to only those key rows of the rectangle that they see (10 of 14 for
windows of 7).
"""

from __future__ import annotations

import functools
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from mvar_kernels.backends.common.rectangles import GridTile, query_tiles
from mvar_kernels.backends.tiled.turns import in_turns
from mvar_kernels.pyramid import WindowBlock

TILE = 8
# Query rows per strip. 4 rows of 8 are 32 queries, which is also how many PyTorch's fused kernel takes at a
# time.
STRIP_ROWS = 4


class RowStrip(NamedTuple):
    """A few query rows of every tile and the key rows that they see.

    Attributes:
        first_row: first query row, counted inside the tile.
        slots: the strip's queries among the slots of a tile.
        num_key_rows: key rows that the strip attends to.
        bias: (T, 1, slots, num_key_rows * rectangle width), 0 where attended, -inf elsewhere.
    """

    first_row: int
    slots: slice
    num_key_rows: int
    bias: Tensor


class TileRun(NamedTuple):
    """Consecutive tiles of one turn whose strips begin at the same key rows of their rectangles.

    Attributes:
        tiles: which tiles.
        first_key_rows: for each strip, its first key row counted inside the rectangle.
        turn: tiles of one turn see no common key (`turns.py`).
    """

    tiles: slice
    first_key_rows: tuple[int, ...]
    turn: int


class SlotRect(NamedTuple):
    """The place of a tile's queries in the query grid."""

    row: int
    col: int
    height: int
    width: int


class Layout(NamedTuple):
    """The T tiles of a block, with M query slots and N key slots each.

    Attributes:
        rects: where each tile's queries lie.
        width: slots per row of a tile.
        queries: (T, M) query of each slot; slots beyond the grid repeat a query of the tile.
        real: (T, M) False for those repeated slots; None if there are none.
        keys: (T, N) key of each slot.
        seen: the tiles with the keys that they see; rectangles may be larger.
        key_corners: first key row and column of each tile's rectangle.
        key_rect: rows and columns of every rectangle.
        strips: the strips of a tile, top to bottom.
        runs: all tiles in order, as runs; turns never decrease.
    """

    rects: tuple[SlotRect, ...]
    width: int
    queries: Tensor
    real: Tensor | None
    keys: Tensor
    seen: tuple[GridTile, ...]
    key_corners: tuple[tuple[int, int], ...]
    key_rect: tuple[int, int]
    strips: tuple[RowStrip, ...]
    runs: tuple[TileRun, ...]

    def key_slots(self, strip: RowStrip, first_key_row: int) -> slice:
        """Return the key slots that a strip sees: whole rows of the rectangle."""
        width = self.key_rect[1]
        return slice(first_key_row * width, (first_key_row + strip.num_key_rows) * width)


@functools.lru_cache(maxsize=64)
def layout_of(block: WindowBlock, dtype: torch.dtype, device: torch.device) -> Layout:
    """Cut a block into tiles; `dtype` is that of the masks."""
    turns = in_turns(query_tiles(block, TILE, TILE))
    tiles = [tile for turn in turns for tile in turn]
    (grid_h, grid_w), (keys_h, keys_w) = block.query_grid, block.key_grid
    height, width = min(TILE, grid_h), min(TILE, grid_w)
    rect_h, rect_w = max(len(tile.key_rows) for tile in tiles), max(len(tile.key_cols) for tile in tiles)
    slot_i, slot_j = _rows_and_cols(height, width)
    key_i, key_j = _rows_and_cols(rect_h, rect_w)
    first = torch.tensor([(tile.query_rows.start, tile.query_cols.start) for tile in tiles])
    # All rectangles have the size of the largest, so those at the far border begin earlier than their windows
    # need.
    corner = torch.tensor(
        [(min(t.key_rows.start, keys_h - rect_h), min(t.key_cols.start, keys_w - rect_w)) for t in tiles]
    )
    query_i, query_j = first[:, :1] + slot_i, first[:, 1:] + slot_j
    real = (query_i < grid_h) & (query_j < grid_w)
    query_i, query_j = query_i.clamp_max(grid_h - 1), query_j.clamp_max(grid_w - 1)
    keys_i, keys_j = corner[:, :1] + key_i, corner[:, 1:] + key_j
    row_starts = torch.tensor(block.axis_starts(0))[query_i]
    col_starts = torch.tensor(block.axis_starts(1))[query_j]

    strips, first_key_rows = [], []
    for top in range(0, height, STRIP_ROWS):
        slots = slice(top * width, min(top + STRIP_ROWS, height) * width)
        lowest, highest = row_starts[:, slots].amin(1), row_starts[:, slots].amax(1) + block.window[0]
        rows = int((highest - lowest).max())
        begin = torch.minimum(lowest - corner[:, 0], torch.tensor(rect_h - rows))
        seen = begin[:, None] * rect_w + torch.arange(rows * rect_w)  # (T, n) key slots that the strip sees
        in_rows = _inside(keys_i.gather(1, seen), row_starts[:, slots], block.window[0])
        in_cols = _inside(keys_j.gather(1, seen), col_starts[:, slots], block.window[1])
        bias = torch.zeros(in_rows.shape, dtype=dtype).masked_fill_(~(in_rows & in_cols), float("-inf"))
        strips.append(RowStrip(top, slots, rows, bias.unsqueeze(1).to(device)))
        first_key_rows.append(begin.tolist())

    return Layout(
        tuple(
            SlotRect(t.query_rows.start, t.query_cols.start, len(t.query_rows), len(t.query_cols))
            for t in tiles
        ),
        width,
        (query_i * grid_w + query_j).to(device),
        None if real.all() else real.to(device),
        (keys_i * keys_w + keys_j).to(device),
        tuple(tiles),
        tuple((row, col) for row, col in corner.tolist()),
        (rect_h, rect_w),
        tuple(strips),
        _runs(
            [number for number, turn in enumerate(turns) for _ in turn],
            list(zip(*first_key_rows)),
        ),
    )


def computed_scores(block: WindowBlock) -> int:
    """Count the scores that a block's tiles compute per batch element and head, hidden ones included."""
    tiles = query_tiles(block, TILE, TILE)
    height, width = (min(TILE, side) for side in block.query_grid)
    rect_h, rect_w = max(len(t.key_rows) for t in tiles), max(len(t.key_cols) for t in tiles)
    return len(tiles) * height * width * rect_h * rect_w


def _rows_and_cols(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the row and the column of each cell of a rectangle, row-major."""
    rows, cols = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return rows.flatten(), cols.flatten()


def _runs(turns: list[int], first_key_rows: list[tuple[int, ...]]) -> tuple[TileRun, ...]:
    """Join neighbouring tiles with equal entries in both lists."""
    runs, begin = [], 0
    for (turn, first_rows), tiles in groupby(zip(turns, first_key_rows)):
        count = len(list(tiles))
        runs.append(TileRun(slice(begin, begin + count), first_rows, turn))
        begin += count
    return tuple(runs)


def _inside(key: Tensor, start: Tensor, window: int) -> Tensor:
    """Compare keys (T, N) with window starts (T, M); (T, M, N) bool."""
    return (key[:, None] >= start[:, :, None]) & (key[:, None] < start[:, :, None] + window)
