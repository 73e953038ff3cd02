"""O(N k) attention in plain PyTorch, forward and backward: CPUs, and any device without triton.

Queries are cut into 8 x 8 tiles; a tile's keys are one rectangle, gathered as whole (heads x D) rows. Strips of four query rows attend to the
rows of that rectangle which they see (10 of 14 for windows of 7), with the windows as an additive mask. Dense blocks need no gathering. Nothing of
size L x L exists.

A few tiles are worked off at a time, in memory that is kept, so that gathered rows stay in the caches; every thread gets the same number of them
and attends to rows that it gathered itself. 64 x 64 with windows of 7, 8 heads of 64, went from 54 to 17 ms forward on two cores (24 where the
cores share no cache, see `_FORWARD_PIECE`); most of it by gathering from 2-d tensors, see `_Workspace.gather`.

dk and dv come out per tile and overlap between tiles. Each tile is added to its rectangle of keys, one after the other: no scatter-add, and the same
bits on every run.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from mvar_kernels.backends.common import buffers as recycled
from mvar_kernels.backends.common.cosine import normalized, normalized_backward
from mvar_kernels.backends.common.dense import attend, attend_backward
from mvar_kernels.backends.common.rectangles import query_tiles
from mvar_kernels.backends.sdpa import slices
from mvar_kernels.pyramid import Block, Neighborhood

NAME = "tiled"

_TILE = 8
# Query rows that attend together: 32 queries, which is also what PyTorch's fused kernel takes at a time. When 64 x 64 took 30 ms forward with
# tiles in one piece, it took 28 in strips of four, backward the same.
_STRIP = 4
# Elements of gathered keys that a thread has at a time, forward and backward: 4 and 2 tiles at 64 x 64 with 8 heads of 64. In ms, on two cores of a
# virtual machine that share an L3 cache at some times and not at others, which shows as two speeds: forward with 2, 3, 4, 5 tiles a thread
# sharing 18, 18, 16.5, 17.5 to 21, apart 25.5, 25.5, 23, 24 to 32; backward with 2, 3, 4 sharing 45, 48, 53, apart 61.5, 63, 60.
_FORWARD_PIECE, _BACKWARD_PIECE = 7 << 16, 1 << 18
# Of gathered rows, kept between calls by each thread that calls, for every thread that works for it; more is let go. At 64 x 64 it is 4 MiB.
_KEPT_BYTES = 8 << 20


def can_run(
    query: Tensor, key: Tensor, value: Tensor, logit_scale: Tensor | None, neighborhood: Neighborhood
) -> str | None:
    return None


class _Strip(NamedTuple):
    """Some query rows of every tile and the key rows they see.

    top: the first query row. slots: the queries' slots of the tile. height: key rows. bias (T, 1, slots, height * reach): 0 where attended,
    -inf elsewhere.
    """

    top: int
    slots: slice
    height: int
    bias: Tensor


class _Run(NamedTuple):
    """Consecutive tiles whose strips begin at the same rows of their rectangles: tiles, and the first key row of each strip."""

    tiles: slice
    first_rows: tuple[int, ...]


class _Place(NamedTuple):
    """A tile's queries in the grid: the first one's row and column, and how many rows and columns."""

    row: int
    col: int
    height: int
    width: int


class _Tables(NamedTuple):
    """Of a block with T tiles of M query slots and N key slots.

    places: of each tile's queries. width: columns of slots. queries (T, M): query of each slot; slots beyond the grid repeat a query of the
    tile. real (T, M): which do not; None if all. keys (T, N). corners: each tile's first key row and column; reach: rows and columns of keys.
    """

    places: tuple[_Place, ...]
    width: int
    queries: Tensor
    real: Tensor | None
    keys: Tensor
    corners: tuple[tuple[int, int], ...]
    reach: tuple[int, int]
    strips: tuple[_Strip, ...]
    runs: tuple[_Run, ...]


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def _tables(block: Block, dtype: torch.dtype, device: torch.device) -> _Tables:
    tiles = query_tiles(block, _TILE, _TILE)
    (grid_h, grid_w), (keys_h, keys_w) = block.query_grid, block.key_grid
    height, width = min(_TILE, grid_h), min(_TILE, grid_w)
    reach_h, reach_w = (
        max(len(reach) for reach in axis) for axis in zip(*((tile.key_rows, tile.key_cols) for tile in tiles))
    )
    slot_i, slot_j = _places(height, width)
    key_i, key_j = _places(reach_h, reach_w)
    first = torch.tensor([(tile.query_rows.start, tile.query_cols.start) for tile in tiles])
    # Rectangles all have one size, so those at the far border begin earlier than they must.
    corner = torch.tensor(
        [(min(t.key_rows.start, keys_h - reach_h), min(t.key_cols.start, keys_w - reach_w)) for t in tiles]
    )
    query_i, query_j = first[:, :1] + slot_i, first[:, 1:] + slot_j
    real = (query_i < grid_h) & (query_j < grid_w)
    query_i, query_j = query_i.clamp_max(grid_h - 1), query_j.clamp_max(grid_w - 1)
    keyed_i, keyed_j = corner[:, :1] + key_i, corner[:, 1:] + key_j
    row_starts, col_starts = (
        torch.tensor(block.axis_starts(0))[query_i],
        torch.tensor(block.axis_starts(1))[query_j],
    )

    strips, first_rows = [], []
    for top in range(0, height, _STRIP):
        slots = slice(top * width, min(top + _STRIP, height) * width)
        lowest, highest = row_starts[:, slots].amin(1), row_starts[:, slots].amax(1) + block.window[0]
        rows = int((highest - lowest).max())
        begin = torch.minimum(lowest - corner[:, 0], torch.tensor(reach_h - rows))
        seen = begin[:, None] * reach_w + torch.arange(
            rows * reach_w
        )  # (T, n): slots of the keys in the strip's reach
        in_rows = _inside(keyed_i.gather(1, seen), row_starts[:, slots], block.window[0])
        in_cols = _inside(keyed_j.gather(1, seen), col_starts[:, slots], block.window[1])
        bias = torch.zeros(in_rows.shape, dtype=dtype).masked_fill_(~(in_rows & in_cols), float("-inf"))
        strips.append(_Strip(top, slots, rows, bias.unsqueeze(1).to(device)))
        first_rows.append(begin.tolist())

    return _Tables(
        tuple(
            _Place(t.query_rows.start, t.query_cols.start, len(t.query_rows), len(t.query_cols))
            for t in tiles
        ),
        width,
        (query_i * grid_w + query_j).to(device),
        None if real.all() else real.to(device),
        (keyed_i * keys_w + keyed_j).to(device),
        tuple((row, col) for row, col in corner.tolist()),
        (reach_h, reach_w),
        tuple(strips),
        _runs(list(zip(*first_rows))),
    )


def _places(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Row and column of each place of a rectangle, row-major."""
    rows, cols = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return rows.flatten(), cols.flatten()


def _runs(first_rows: list[tuple[int, ...]]) -> tuple[_Run, ...]:
    runs, begin = [], 0
    for tile in range(1, len(first_rows) + 1):
        if tile == len(first_rows) or first_rows[tile] != first_rows[begin]:
            runs.append(_Run(slice(begin, tile), first_rows[begin]))
            begin = tile
    return tuple(runs)


def _inside(key: Tensor, start: Tensor, window: int) -> Tensor:
    """(T, M, N) bool of keys (T, N) and window starts (T, M)."""
    return (key[:, None] >= start[:, :, None]) & (key[:, None] < start[:, :, None] + window)


class _Workspace(threading.local):
    """Memory for the gathered rows of one piece, kept from piece to piece and, on a CPU, from call to call: fresh memory costs more than the copies
    that go into it (28 x 28 forward: 8.5 ms, kept from call to call 4.5). Every thread that calls has its own.
    """

    def __init__(self) -> None:
        self.buffers: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}

    def gather(self, name: int, tensor: Tensor, places: Tensor) -> Tensor:
        """(B, n, H, D) and places (T, M) -> (B * T, H, M, D), whole (H, D) rows copied; valid until the next call with the same `name`.

        On a CPU index_select takes 0.13 ms for 3,920 rows of 512 from a 2-d tensor, 13 ms along an inner axis: batch elements take turns.
        """
        batch, _, heads, dim = tensor.shape
        tiles, slots = places.shape
        held = self._held((name, tensor.dtype, tensor.device), batch * tiles * slots * heads * dim)
        rows = held.view(batch * tiles * slots, heads * dim)
        for source, target in zip(tensor.flatten(2), rows.view(batch, tiles * slots, heads * dim)):
            torch.index_select(source, 0, places.flatten(), out=target)
        return rows.view(batch * tiles, slots, heads, dim).transpose(1, 2)

    def _held(self, key: tuple[int, torch.dtype, torch.device], size: int) -> Tensor:
        held = self.buffers.get(key)
        if held is None or len(held) < size:
            with torch.inference_mode(
                False
            ):  # else a later call outside of inference mode could not write there
                held = self.buffers[key] = torch.empty(size, dtype=key[1], device=key[2])
        return held[:size]

    @contextmanager
    def lent(self) -> Iterator[None]:
        """For the time of a call; then what is on another device, or too much, is let go."""
        try:
            yield
        finally:
            held = sum(buffer.nbytes for buffer in self.buffers.values())
            if held > _KEPT_BYTES * torch.get_num_threads() or any(
                device.type != "cpu" for _, _, device in self.buffers
            ):
                self.buffers.clear()


_workspace = _Workspace()


@functools.lru_cache(maxsize=1024)
def _side_by_side(places: tuple[_Place, ...]) -> tuple[tuple[slice, _Place], ...]:
    """Neighbouring tiles of one size in a row of tiles: which, and the first one's place."""
    groups, begin = [], 0
    for tile in range(1, len(places) + 1):
        first = places[begin]
        if tile == len(places) or places[tile] != first._replace(
            col=first.col + (tile - begin) * first.width
        ):
            groups.append((slice(begin, tile), first))
            begin = tile
    return tuple(groups)


def _put(target: Tensor, tiles: Tensor, top: int, width: int, places: tuple[_Place, ...]) -> None:
    """Slots of T tiles from row `top` on, (B * T, M, F) in rows of `width`, to their places in target (B, h, w, F); every query once.

    Copies of rectangles are shared among threads, which index_copy_ is not: 1.1 ms for 2.1 at 64 x 64.
    """
    per_tile = tiles.reshape(len(target), len(places), -1, width, target.shape[-1])
    for which, first in _side_by_side(places):
        rows = per_tile[:, which, : max(0, first.height - top), : first.width].transpose(
            1, 2
        )  # (B, rows, tiles, columns, F)
        count, height = rows.shape[2], rows.shape[1]
        span = target.narrow(1, first.row + min(top, first.height), height).narrow(
            2, first.col, count * first.width
        )
        span.unflatten(2, (count, first.width)).copy_(rows)


def _pieces(batch: int, tables: _Tables, row: int, piece: int) -> list[tuple[slice, slice, tuple[int, ...]]]:
    """(batch elements, tiles, first key row of each strip): for every thread tiles with `piece` elements of keys, or one; `row` is H * D."""
    per_piece, pieces = max(1, piece // (tables.keys.shape[1] * row)) * torch.get_num_threads(), []
    for run in tables.runs:
        start, stop = run.tiles.start, run.tiles.stop
        step = max(1, per_piece // (stop - start))
        for b in range(0, batch, step):
            some = slice(b, min(b + step, batch))
            pieces += [
                (some, slice(t, min(t + per_piece, stop)), run.first_rows)
                for t in range(start, stop, per_piece)
            ]
    return pieces


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    logit_scale: Tensor | None,
    neighborhood: Neighborhood,
    scale: float,
) -> tuple[Tensor, Tensor]:
    query, key = normalized(query, key, logit_scale)
    batch, _, heads, dim = query.shape
    precise = torch.promote_types(query.dtype, torch.float32)
    out = recycled.empty((batch, neighborhood.num_queries, heads * dim), query.dtype, query.device)
    lse = torch.empty((batch, neighborhood.num_queries, heads), dtype=precise, device=query.device)
    with _workspace.lent():
        for block in neighborhood.blocks:
            rows, cols = slices(block)
            run = _dense_forward if block.is_dense else _windowed_forward
            run(query[:, rows], key[:, cols], value[:, cols], block, scale, out[:, rows], lse[:, rows])
    return out.unflatten(2, (heads, dim)), lse.transpose(1, 2).contiguous()


def _dense_forward(
    query: Tensor, key: Tensor, value: Tensor, block: Block, scale: float, out: Tensor, lse: Tensor
) -> None:
    block_out, block_lse = attend(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), None, scale
    )
    out.unflatten(2, query.shape[2:]).copy_(block_out.transpose(1, 2))
    lse.copy_(block_lse.transpose(1, 2))


def _windowed_forward(
    query: Tensor, key: Tensor, value: Tensor, block: Block, scale: float, out: Tensor, lse: Tensor
) -> None:
    tables = _tables(block, query.dtype, query.device)
    batch, _, heads, dim = query.shape
    out, lse = (result.unflatten(1, block.query_grid) for result in (out, lse))
    for some, which, first_rows in _pieces(batch, tables, heads * dim, _FORWARD_PIECE):
        queries, keys, places = tables.queries[which], tables.keys[which], tables.places[which]
        q, k, v = (
            _workspace.gather(0, query[some], queries),
            _workspace.gather(1, key[some], keys),
            _workspace.gather(2, value[some], keys),
        )
        for strip, first_row in zip(tables.strips, first_rows):
            slots, reach = strip.slots, _reach(strip, first_row, tables)
            strip_out, strip_lse = attend(
                q[:, :, slots], k[:, :, reach], v[:, :, reach], _bias(strip, which, len(q)), scale
            )
            for target, tiles in ((out[some], strip_out), (lse[some], strip_lse)):
                _put(target, tiles.transpose(1, 2), strip.top, tables.width, places)


def _reach(strip: _Strip, first_row: int, tables: _Tables) -> slice:
    """Key slots of a tile that a strip sees: whole rows of the tile's rectangle."""
    width = tables.reach[1]
    return slice(first_row * width, (first_row + strip.height) * width)


def _bias(strip: _Strip, which: slice, count: int) -> Tensor:
    """(count, 1, slots, keys), the tiles' masks repeated over the batch."""
    bias = strip.bias[which]
    return bias if count == len(bias) else bias.repeat(count // len(bias), 1, 1, 1)


def backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    logit_scale: Tensor | None,
    neighborhood: Neighborhood,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    q, k = normalized(query, key, logit_scale)
    dq = recycled.empty(query.shape, query.dtype, query.device)
    # Tiles overlap, and blocks may share keys (VAR's mask): what they give is added, in a fixed order and in lse's type, which is at least float32.
    dk, dv = (recycled.zeros(key.shape, lse.dtype, key.device) for _ in range(2))
    with _workspace.lent():
        for block in neighborhood.blocks:
            rows, cols = slices(block)
            run = _dense_backward if block.is_dense else _windowed_backward
            block_lse = None if grad_lse is None else grad_lse[:, :, rows]
            inputs = (
                grad_out[:, rows],
                block_lse,
                q[:, rows],
                k[:, cols],
                value[:, cols],
                out[:, rows],
                lse[:, :, rows],
            )
            run(*inputs, block, scale, dq[:, rows], dk[:, cols], dv[:, cols])
    dq, dk, grad_factor = normalized_backward(dq, dk, query, key, logit_scale)
    return dq, dk.to(key.dtype), dv.to(value.dtype), grad_factor


def _dense_backward(
    grad_out: Tensor, grad_lse: Tensor | None, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor,
    block: Block, scale: float, dq: Tensor, dk: Tensor, dv: Tensor,
) -> None:  # fmt: skip
    heads_first = [tensor.transpose(1, 2) for tensor in (query, key, value, out)]
    gradients = attend_backward(grad_out.transpose(1, 2), grad_lse, *heads_first, lse, None, scale)
    block_dq, block_dk, block_dv = (gradient.transpose(1, 2) for gradient in gradients)
    dq.copy_(block_dq)
    dk.add_(block_dk)
    dv.add_(block_dv)


def _windowed_backward(
    grad_out: Tensor, grad_lse: Tensor | None, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor,
    block: Block, scale: float, dq: Tensor, dk: Tensor, dv: Tensor,
) -> None:  # fmt: skip
    tables = _tables(block, query.dtype, query.device)
    batch, _, heads, dim = query.shape
    dq, dk, dv = (
        result.flatten(2).unflatten(1, grid)
        for result, grid in ((dq, block.query_grid), (dk, block.key_grid), (dv, block.key_grid))
    )
    width = tables.reach[1]
    lses = [None if each is None else each.transpose(1, 2).unsqueeze(-1) for each in (lse, grad_lse)]
    for some, which, first_rows in _pieces(batch, tables, heads * dim, _BACKWARD_PIECE):
        queries, keys, real = (
            tables.queries[which],
            tables.keys[which],
            None if tables.real is None else tables.real[which],
        )
        q, o, do = (
            _workspace.gather(i, tensor[some], queries) for i, tensor in ((0, query), (3, out), (4, grad_out))
        )
        k, v = _workspace.gather(1, key[some], keys), _workspace.gather(2, value[some], keys)
        tile_lse, tile_grad_lse = (
            None if each is None else _workspace.gather(5 + i, each[some], queries).squeeze(-1)
            for i, each in enumerate(lses)
        )
        if real is not None:  # slots that repeat a query must not count twice
            once = real.to(do.dtype).repeat(len(q) // len(queries), 1).unsqueeze(1)
            do = do * once.unsqueeze(-1)
            tile_grad_lse = None if tile_grad_lse is None else tile_grad_lse * once
        for strip, first_row in zip(tables.strips, first_rows):
            slots, reach = strip.slots, _reach(strip, first_row, tables)
            strip_grad_lse = None if tile_grad_lse is None else tile_grad_lse[:, :, slots]
            of_queries = [tensor[:, :, slots] for tensor in (do, q, o, tile_lse)]
            do_, q_, o_, lse_ = of_queries
            bias = _bias(strip, which, len(q))
            strip_dq, *of_keys = attend_backward(
                do_, strip_grad_lse, q_, k[:, :, reach], v[:, :, reach], o_, lse_, bias, scale
            )
            _put(dq[some], strip_dq.transpose(1, 2), strip.top, tables.width, tables.places[which])
            for target, tiles in zip((dk[some], dv[some]), of_keys):
                per_tile = tiles.transpose(1, 2).reshape(
                    len(target), len(queries), strip.height, width, heads * dim
                )
                for tile, (row, col) in enumerate(tables.corners[which]):
                    row += first_row
                    target.narrow(1, row, strip.height).narrow(2, col, width).add_(per_tile[:, tile])


# Time of tiles over time of dense attention, per computed score, and what a block costs beside that, in dense scores. Fitted on two cores
# (float32, 8 heads of 64, forward and backward) at grids of 14 to 48 a side and windows of 3, 7 and 13, by eye and before
# pieces were cut by threads; close calls may fall either way.
_TILED_PER_SCORE = 2.1
_TILED_PER_BLOCK = 20_000


@functools.lru_cache(maxsize=256)
def or_sdpa(neighborhood: Neighborhood) -> tuple[str, str]:
    """ "tiled" or "sdpa", whichever is expected to be faster on a CPU, and why in one line.

    Per batch element and head, in units of one dense score. Dense blocks cost both the same.
    """
    dense = tiled = 0.0
    for block in neighborhood.blocks:
        if not block.is_dense:
            dense += block.num_queries * block.num_keys
            tiled += _TILED_PER_SCORE * _tile_scores(block) + _TILED_PER_BLOCK
    if tiled < dense:
        return "tiled", f"its tiles take about {tiled / dense:.0%} of the time of dense attention"
    return "sdpa", "grids this small are faster dense"


def _tile_scores(block: Block) -> int:
    tiles = query_tiles(block, _TILE, _TILE)
    height, width = (min(_TILE, side) for side in block.query_grid)
    return (
        len(tiles)
        * height
        * width
        * max(len(t.key_rows) for t in tiles)
        * max(len(t.key_cols) for t in tiles)
    )
