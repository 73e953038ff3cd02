"""Which tokens each tile of a windowed block gathers, and which of them each query of the tile may see.

A tile is a box of up to 64 queries. Its keys are one box, the union of the queries' windows. A strip is a few
query rows (planes, in three dimensions) of a tile, which attend to only those key rows of the box that they
see (10 of 14 for windows of 7).

Queries with windows in several blocks of keys see all of them in one softmax. There each strip's rows of all
boxes are gathered side by side: 1.4 times the copies of whole boxes, which are 7 % of the time, but one call
of the fused kernel. A call per block and a merge of the results took 1.2 to 2 times as long (512 and 1024 px,
windows of 7, the preceding scale, both directions).

Positions along an axis are places in the order of `neighborhood.AxisWindows`; `places.py` brings the tokens
of dilated blocks into it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mvar_kernels import caches
from mvar_kernels.backends.rectangles import GridTile, query_cuts, query_tiles
from mvar_kernels.pyramid import Grid, WindowBlock

# Shapes of a tile by the number of axes; the one that computes fewest scores is taken.
_SHAPES: dict[int, tuple[Grid, ...]] = {
    1: ((64,),),
    2: ((8, 8),),
    3: ((4, 4, 4), (2, 4, 8), (2, 8, 4), (1, 8, 8), (4, 2, 8), (4, 8, 2), (8, 2, 4), (8, 4, 2)),
}
# Queries per strip, which is also how many PyTorch's fused kernel takes at a time.
_STRIP_QUERIES = 32


class KeyRows(NamedTuple):
    """The keys of one block that a strip attends to: rows of each tile's box.

    Attributes:
        shape: places per axis, the same for every tile.
        corners: first place per axis in the key grid, for each tile.
    """

    shape: Grid
    corners: tuple[Grid, ...]


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
    """Consecutive tiles whose strips see the same key slots.

    Attributes:
        tiles: which tiles.
        key_shifts: for each strip, by how much its key slots begin later than at `first_key`.
    """

    tiles: slice
    key_shifts: tuple[int, ...]


class SlotRect(NamedTuple):
    """The place of a tile's queries in the query grid, per axis."""

    corner: Grid
    shape: Grid


class KeySlots(NamedTuple):
    """Keys of every tile, which differ by an offset alone.

    Attributes:
        first: (T, 1) the first key.
        steps: (N,) what each slot adds to it.
    """

    first: Tensor
    steps: Tensor


class Layout(NamedTuple):
    """The T tiles of a grid of queries, with M query slots and N key slots each.

    Attributes:
        blocks: what the queries see.
        rects: where each tile's queries lie.
        slots: query slots per axis of a tile.
        queries: (T, M) query of each slot; slots beyond the grid repeat a query of the tile.
        real: (T, M) False for those repeated slots; None if there are none.
        key_slots: the N keys of each tile, one part after the other.
        seen: for each block, the tiles with the keys that they see; boxes may be larger.
        strips: the strips of a tile, top to bottom.
        runs: all tiles in order, as runs.
    """

    blocks: tuple[WindowBlock, ...]
    rects: tuple[SlotRect, ...]
    slots: Grid
    queries: Tensor
    real: Tensor | None
    key_slots: tuple[KeySlots, ...]
    seen: tuple[tuple[GridTile, ...], ...]
    strips: tuple[RowStrip, ...]
    runs: tuple[TileRun, ...]

    @property
    def widest(self) -> int:
        """How many tiles the longest run has."""
        return max(run.tiles.stop - run.tiles.start for run in self.runs)

    @property
    def num_keys(self) -> int:
        """How many key slots a tile has (N)."""
        return sum(len(part.steps) for part in self.key_slots)

    def keys(self, tiles: slice) -> Tensor:
        """Return (tiles, N), the key of each slot."""
        parts = [part.first[tiles] + part.steps for part in self.key_slots]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


@caches.tables(96 << 20)
def layout_of(blocks: tuple[WindowBlock, ...], dtype: torch.dtype, device: torch.device) -> Layout:
    """Cut the queries into tiles.

    Args:
        blocks: the keys that the queries see; all blocks have the same queries.
        dtype: type of the masks.
        device: where the tensors lie.
    """
    shape = _shape_of_tiles(blocks)
    seen = tuple(tuple(query_tiles(block, shape)) for block in blocks)
    grid = blocks[0].query_grid
    slots = tuple(map(min, shape, grid))
    first = torch.tensor([[places.start for places in tile.queries] for tile in seen[0]])
    # Per axis (T, slots): the place of each.
    places = [first[:, axis, None] + torch.arange(count) for axis, count in enumerate(slots)]
    real = _combined([each < side for each, side in zip(places, grid)], torch.logical_and)
    places = [each.clamp_max(side - 1) for each, side in zip(places, grid)]
    tokens = [each * math.prod(grid[axis + 1 :]) for axis, each in enumerate(places)]

    boxes = [_KeyBoxes.of(block, tiles) for block, tiles in zip(blocks, seen)]
    # Strips of one block overlap, so they share their box's slots.
    shared = len(blocks) == 1
    key_slots = [boxes[0].slots(boxes[0].corners[:, 0], boxes[0].shape[0])] if shared else []
    strips, shifts = [], []
    rows, row = _strip_rows(shape), math.prod(slots[1:])
    for first_row in range(0, slots[0], rows):
        own = [places[0][:, first_row : first_row + rows], *places[1:]]
        parts, hidden, first_key = [], [], sum(len(part.steps) for part in key_slots)
        for box in boxes:
            top, height = box.rows_seen(own[0])
            corners = torch.cat([top[:, None], box.corners[:, 1:]], dim=1)
            parts.append(KeyRows((height, *box.shape[1:]), tuple(map(tuple, corners.tolist()))))
            hidden.append(box.hidden(own, corners, height))
            if not shared:
                key_slots.append(box.slots(top, height))
        begin = (
            (top - boxes[0].corners[:, 0]) * math.prod(boxes[0].shape[1:])
            if shared
            else torch.zeros(len(seen[0]))
        )
        masks, mask_of = _different_masks(hidden, dtype)
        strips.append(
            RowStrip(
                first_row,
                slice(first_row * row, min(first_row + rows, slots[0]) * row),
                tuple(parts),
                0 if shared else first_key,
                masks.to(device),
                mask_of.to(device),
            )
        )
        shifts.append(begin.int().tolist())

    return Layout(
        blocks,
        tuple(
            SlotRect(tuple(places.start for places in tile.queries), tuple(map(len, tile.queries)))
            for tile in seen[0]
        ),
        slots,
        (blocks[0].query_offset + _combined(tokens, torch.add)).to(device),
        None if real.all() else real.to(device),
        tuple(KeySlots(part.first.to(device), part.steps.to(device)) for part in key_slots),
        seen,
        tuple(strips),
        _runs(list(zip(*shifts))),
    )


def computed_scores(block: WindowBlock) -> int:
    """Count the scores that a block's tiles compute per batch element and head, hidden ones included."""
    return _scores_of_shape((block,), _shape_of_tiles((block,)))


def _shape_of_tiles(blocks: tuple[WindowBlock, ...]) -> Grid:
    return min(_SHAPES[blocks[0].rank], key=lambda shape: _scores_of_shape(blocks, shape))


@caches.remembered(1024)
def _scores_of_shape(blocks: tuple[WindowBlock, ...], shape: Grid) -> int:
    total = 0
    for block in blocks:
        cuts = [query_cuts(block, axis, side) for axis, side in enumerate(shape)]
        keys = math.prod(max(len(cut.keys) for cut in axis) for axis in cuts)
        total += keys * math.prod(
            len(axis) * min(side, length) for axis, side, length in zip(cuts, shape, block.query_grid)
        )
    return total


def _strip_rows(shape: Grid) -> int:
    return max(1, _STRIP_QUERIES // math.prod(shape[1:]))


class _KeyBoxes(NamedTuple):
    """The keys of one block that each tile gathers: boxes of one size in the key grid.

    Attributes:
        block: the block.
        shape: places per axis.
        corners: (T, axes) first place of each.
        windows: per axis, place of the first key that each query sees, and of the one behind the last.
    """

    block: WindowBlock
    shape: Grid
    corners: Tensor
    windows: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def of(cls, block: WindowBlock, tiles: Sequence[GridTile]) -> _KeyBoxes:
        """Take the size of the largest box for all, so those at the far border begin earlier."""
        ends = torch.tensor([[(places.start, places.stop) for places in tile.keys] for tile in tiles])
        shape = (ends[:, :, 1] - ends[:, :, 0]).amax(0)
        corners = torch.minimum(ends[:, :, 0], torch.tensor(block.key_grid) - shape)
        axes = [block.axis(axis) for axis in range(block.rank)]
        windows = tuple((torch.from_numpy(axis.starts), torch.from_numpy(axis.stops)) for axis in axes)
        return cls(block, tuple(shape.tolist()), corners, windows)

    def rows_seen(self, queries: Tensor) -> tuple[Tensor, int]:
        """Return the first key row (T,) and how many rows queries in the rows (T, m) need at most."""
        lowest, highest = self.windows[0][0][queries].amin(1), self.windows[0][1][queries].amax(1)
        rows = int((highest - lowest).max())
        return torch.minimum(lowest, self.corners[:, 0] + self.shape[0] - rows), rows

    def slots(self, top: Tensor, rows: int) -> KeySlots:
        """Return the keys in the rows from `top` (T,) on."""
        grid = self.block.key_grid
        steps = [math.prod(grid[axis + 1 :]) for axis in range(len(grid))]
        corners = torch.cat([top[:, None], self.corners[:, 1:]], dim=1)
        first = self.block.key_offset + corners @ torch.tensor(steps)
        shape = rows, *self.shape[1:]
        offsets = [torch.arange(count)[None] * step for count, step in zip(shape, steps)]
        return KeySlots(first[:, None], _combined(offsets, torch.add)[0])

    def hidden(self, queries: Sequence[Tensor], corners: Tensor, rows: int) -> list[Tensor]:
        """Return per axis (T, m, n), True where queries at the places (T, m) do not see keys of the box."""
        found = []
        for axis, (starts, stops) in enumerate(self.windows):
            count = rows if axis == 0 else self.shape[axis]
            key = (corners[:, axis, None] + torch.arange(count))[:, None]
            starts, stops = starts[queries[axis]][:, :, None], stops[queries[axis]][:, :, None]
            found.append((key < starts) | (key >= stops))
        return found


def _combined(per_axis: Sequence[Tensor], operation: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Combine one (T, n) per axis to (T, product of n), row-major."""
    total = per_axis[0]
    for more in per_axis[1:]:
        total = operation(total[:, :, None], more[:, None, :]).flatten(1)
    return total


def _different_masks(per_block: Sequence[Sequence[Tensor]], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the masks (n, 1, m, keys) that differ from all before them, and (T,) which one a tile has.

    Args:
        per_block: what `_KeyBoxes.hidden` returns.
        dtype: type of the masks.
    """
    columns = [_numbered(axis.flatten(1))[0] for hidden in per_block for axis in hidden]
    of_tiles, first = _numbered(torch.stack(columns, dim=1))
    masks = []
    for hidden in per_block:
        # (n, m, keys), one axis after the other.
        total = hidden[0][first]
        for axis in hidden[1:]:
            both = total[:, :, None, :, None] | axis[first][:, None, :, None, :]
            total = both.flatten(3, 4).flatten(1, 2)
        masks.append(total)
    different = torch.cat(masks, dim=2)
    bias = torch.zeros(different.shape, dtype=dtype).masked_fill_(different, float("-inf"))
    return bias.unsqueeze(1), of_tiles


def _numbered(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each row (T, n) the number of its value, and for each value the first row that has it."""
    known: dict[bytes, int] = {}
    first: list[int] = []
    numbers = []
    for place, row in enumerate(rows.numpy()):
        numbers.append(known.setdefault(row.tobytes(), len(known)))
        if len(first) < len(known):
            first.append(place)
    return torch.tensor(numbers), torch.tensor(first)


def _runs(key_shifts: list[tuple[int, ...]]) -> tuple[TileRun, ...]:
    """Join neighbouring tiles with equal shifts."""
    runs, begin = [], 0
    for shifts, tiles in itertools.groupby(key_shifts):
        count = len(list(tiles))
        runs.append(TileRun(slice(begin, begin + count), shifts))
        begin += count
    return tuple(runs)
