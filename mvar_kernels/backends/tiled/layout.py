"""Which tokens each tile of a windowed block gathers, and which of them each query of the tile may see.

A tile is up to TILE x TILE queries. Its keys are one rectangle, the union of the queries' windows. A strip is
a few query rows of a tile, which attend to only those key rows of the rectangle that they see (10 of 14 for
windows of 7).

Queries with windows in several blocks of keys see all of them in one softmax. There each strip's rows of all
rectangles are gathered side by side: 1.4 times the copies of whole rectangles, which are 7 % of the time, but
one call of the fused kernel. A call per block and a merge of the results took 1.2 to 2 times as long (512 and
1024 px, windows of 7, the preceding scale, both directions).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from mvar_kernels import caches
from mvar_kernels.backends.rectangles import GridTile, query_tiles
from mvar_kernels.backends.tiled.turns import in_turns
from mvar_kernels.pyramid import WindowBlock

TILE = 8
# Query rows per strip. 4 rows of 8 are 32 queries, which is also how many PyTorch's fused kernel takes at a
# time.
STRIP_ROWS = 4


class KeyRows(NamedTuple):
    """The keys of one block that a strip attends to: rows of each tile's rectangle.

    Attributes:
        height, width: rows and columns, the same for every tile.
        corners: first row and column in the key grid, for each tile.
    """

    height: int
    width: int
    corners: tuple[tuple[int, int], ...]


class RowStrip(NamedTuple):
    """A few query rows of every tile and the keys that they see.

    Attributes:
        first_row: first query row, counted inside the tile.
        slots: the strip's queries among the slots of a tile.
        key_rows: the keys, one entry per block.
        first_key: the first of their slots among the key slots of a tile.
        masks: (n, 1, slots, keys), 0 where attended, -inf elsewhere; equal ones are there once.
        mask_of: (T,) which of them belongs to a tile.
    """

    first_row: int
    slots: slice
    key_rows: tuple[KeyRows, ...]
    first_key: int
    masks: Tensor
    mask_of: Tensor

    def key_slots(self, shift: int) -> slice:
        """Return the key slots that the strip sees in a run of that shift."""
        first = self.first_key + shift
        return slice(first, first + self.masks.shape[-1])

    def bias(self, tiles: slice, times: int = 1) -> Tensor:
        """Return (times * tiles, 1, slots, keys): the masks of some tiles, repeated."""
        return self.masks.index_select(0, self.mask_of[tiles].repeat(times))


class TileRun(NamedTuple):
    """Consecutive tiles of one turn whose strips see the same key slots.

    Attributes:
        tiles: which tiles.
        key_shifts: for each strip, by how much its key slots begin later than at `first_key`.
        turn: tiles of one turn see no common key (`turns.py`).
    """

    tiles: slice
    key_shifts: tuple[int, ...]
    turn: int


class SlotRect(NamedTuple):
    """The place of a tile's queries in the query grid."""

    row: int
    col: int
    height: int
    width: int


class Layout(NamedTuple):
    """The T tiles of a grid of queries, with M query slots and N key slots each.

    Attributes:
        blocks: what the queries see.
        rects: where each tile's queries lie.
        width: slots per row of a tile.
        queries: (T, M) query of each slot; slots beyond the grid repeat a query of the tile.
        real: (T, M) False for those repeated slots; None if there are none.
        keys: (T, N) key of each slot.
        seen: for each block, the tiles with the keys that they see; rectangles may be larger.
        strips: the strips of a tile, top to bottom.
        runs: all tiles in order, as runs; turns never decrease.
    """

    blocks: tuple[WindowBlock, ...]
    rects: tuple[SlotRect, ...]
    width: int
    queries: Tensor
    real: Tensor | None
    keys: Tensor
    seen: tuple[tuple[GridTile, ...], ...]
    strips: tuple[RowStrip, ...]
    runs: tuple[TileRun, ...]

    @property
    def turns(self) -> int:
        """How many turns there are."""
        return self.runs[-1].turn + 1

    @property
    def widest(self) -> int:
        """How many tiles the longest run has."""
        return max(run.tiles.stop - run.tiles.start for run in self.runs)


@caches.tables(32 << 20)
def layout_of(blocks: tuple[WindowBlock, ...], dtype: torch.dtype, device: torch.device) -> Layout:
    """Cut the queries into tiles.

    Args:
        blocks: the keys that the queries see; all blocks have the same queries.
        dtype: type of the masks.
        device: where the tensors lie.
    """
    per_block = [query_tiles(block, TILE, TILE) for block in blocks]
    turns = in_turns(per_block)
    order = [number for turn in turns for number in turn]
    seen = tuple(tuple(tiles[number] for number in order) for tiles in per_block)
    grid_h, grid_w = blocks[0].query_grid
    height, width = min(TILE, grid_h), min(TILE, grid_w)
    slot_i, slot_j = _rows_and_cols(height, width)
    first = torch.tensor([(tile.query_rows.start, tile.query_cols.start) for tile in seen[0]])
    query_i, query_j = first[:, :1] + slot_i, first[:, 1:] + slot_j
    real = (query_i < grid_h) & (query_j < grid_w)
    query_i, query_j = query_i.clamp_max(grid_h - 1), query_j.clamp_max(grid_w - 1)

    rectangles = [_KeyRectangles.of(block, tiles) for block, tiles in zip(blocks, seen)]
    # Strips of one block overlap, so they share their rectangle's slots.
    shared = len(blocks) == 1
    keys = [rectangles[0].tokens(rectangles[0].top, rectangles[0].height)] if shared else []
    strips, shifts = [], []
    for first_row in range(0, height, STRIP_ROWS):
        slots = slice(first_row * width, min(first_row + STRIP_ROWS, height) * width)
        parts, masks, first_key = [], [], sum(part.shape[1] for part in keys)
        for rectangle in rectangles:
            top, rows = rectangle.rows_seen(query_i[:, slots])
            parts.append(KeyRows(rows, rectangle.width, tuple(zip(top.tolist(), rectangle.left.tolist()))))
            masks.append(rectangle.hidden(query_i[:, slots], query_j[:, slots], top, rows))
            if not shared:
                keys.append(rectangle.tokens(top, rows))
        begin = ((top - rectangle.top) * rectangle.width).tolist() if shared else [0] * len(order)
        different, mask_of = _different(torch.cat(masks, dim=2))
        bias = torch.zeros(different.shape, dtype=dtype).masked_fill_(different, float("-inf")).unsqueeze(1)
        strips.append(
            RowStrip(
                first_row,
                slots,
                tuple(parts),
                0 if shared else first_key,
                bias.to(device),
                mask_of.to(device),
            )
        )
        shifts.append(begin)

    return Layout(
        blocks,
        tuple(
            SlotRect(t.query_rows.start, t.query_cols.start, len(t.query_rows), len(t.query_cols))
            for t in seen[0]
        ),
        width,
        (blocks[0].query_offset + query_i * grid_w + query_j).to(device),
        None if real.all() else real.to(device),
        torch.cat(keys, dim=1).to(device),
        seen,
        tuple(strips),
        _runs([number for number, turn in enumerate(turns) for _ in turn], list(zip(*shifts))),
    )


class _KeyRectangles(NamedTuple):
    """The keys of one block that each tile gathers: rectangles of one size in the key grid.

    Attributes:
        block: the block.
        height, width: rows and columns.
        top, left: (T,) first row and column of each.
        starts: per axis, first key that each query sees.
    """

    block: WindowBlock
    height: int
    width: int
    top: Tensor
    left: Tensor
    starts: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, block: WindowBlock, tiles: Sequence[GridTile]) -> _KeyRectangles:
        """Take the size of the largest rectangle for all, so those at the far border begin earlier."""
        height = max(len(tile.key_rows) for tile in tiles)
        width = max(len(tile.key_cols) for tile in tiles)
        top = [min(tile.key_rows.start, block.key_grid[0] - height) for tile in tiles]
        left = [min(tile.key_cols.start, block.key_grid[1] - width) for tile in tiles]
        starts = torch.tensor(block.axis_starts(0)), torch.tensor(block.axis_starts(1))
        return cls(block, height, width, torch.tensor(top), torch.tensor(left), starts)

    def rows_seen(self, query_i: Tensor) -> tuple[Tensor, int]:
        """Return the first key row (T,) and how many rows queries in the rows (T, m) need at most."""
        starts = self.starts[0][query_i]
        lowest, highest = starts.amin(1), starts.amax(1) + self.block.window[0]
        rows = int((highest - lowest).max())
        return torch.minimum(lowest, self.top + self.height - rows), rows

    def tokens(self, top: Tensor, rows: int) -> Tensor:
        """Return the keys (T, rows * width) in the rows from `top` (T,) on."""
        i, j = self._cells(top, rows)
        return self.block.key_offset + i * self.block.key_grid[1] + j

    def hidden(self, query_i: Tensor, query_j: Tensor, top: Tensor, rows: int) -> Tensor:
        """Return (T, m, rows * width), True where a query (T, m) does not see a key of `tokens`."""
        i, j = self._cells(top, rows)
        in_rows = _inside(i, self.starts[0][query_i], self.block.window[0])
        return ~(in_rows & _inside(j, self.starts[1][query_j], self.block.window[1]))

    def _cells(self, top: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        i, j = _rows_and_cols(rows, self.width)
        return top[:, None] + i, self.left[:, None] + j


def computed_scores(block: WindowBlock) -> int:
    """Count the scores that a block's tiles compute per batch element and head, hidden ones included."""
    tiles = query_tiles(block, TILE, TILE)
    height, width = (min(TILE, side) for side in block.query_grid)
    rect_h, rect_w = max(len(t.key_rows) for t in tiles), max(len(t.key_cols) for t in tiles)
    return len(tiles) * height * width * rect_h * rect_w


def _different(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Return the masks (T, m, n) that differ from all before them, and for each mask which one it equals."""
    known: dict[bytes, int] = {}
    numbers = [known.setdefault(mask.tobytes(), len(known)) for mask in masks.numpy()]
    return masks[[numbers.index(number) for number in range(len(known))]], torch.tensor(numbers)


def _rows_and_cols(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the row and the column of each cell of a rectangle, row-major."""
    rows, cols = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return rows.flatten(), cols.flatten()


def _runs(turns: list[int], key_shifts: list[tuple[int, ...]]) -> tuple[TileRun, ...]:
    """Join neighbouring tiles with equal entries in both lists."""
    runs, begin = [], 0
    for (turn, shifts), tiles in groupby(zip(turns, key_shifts)):
        count = len(list(tiles))
        runs.append(TileRun(slice(begin, begin + count), shifts, turn))
        begin += count
    return tuple(runs)


def _inside(key: Tensor, start: Tensor, window: int) -> Tensor:
    """Compare keys (T, N) with window starts (T, M); (T, M, N) bool."""
    return (key[:, None] >= start[:, :, None]) & (key[:, None] < start[:, :, None] + window)
