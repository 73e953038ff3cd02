"""O(N k) attention in plain PyTorch, forward and backward: CPUs, and any device without triton.

Queries are cut into 8 x 8 tiles; a tile's keys are one rectangle, gathered as whole (heads x D) rows, and the windows inside it are an
additive mask over (64, rectangle). Dense blocks need no gathering. Nothing of size L x L exists.

A few tiles are worked off at a time, in memory that is kept, so that gathered rows stay in the caches. 64 x 64 with windows of 7, 8 heads of 64, went
from 54 to 20 ms forward on two cores (another hour: 30); most of it by gathering from 2-d tensors, see `_Workspace.gather`.
dk and dv come out per tile and overlap between tiles. Each
tile is added to its rectangle of keys, one after the other: no scatter-add, and the same bits on every run.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from mvar_kernels.backends.cosine import normalized, normalized_backward
from mvar_kernels.backends.dense import attend, attend_backward
from mvar_kernels.backends.sdpa import slices
from mvar_kernels.backends.tiling import query_tiles
from mvar_kernels.pyramid import Block, Neighborhood

NAME = "tiled"

_TILE = 8
# Elements of gathered keys at a time: 2 MiB in float32. Of 2^17 .. 2^20 the fastest at 64 x 64, in one sweep.
_PIECE = 1 << 19


def can_run(query: Tensor, key: Tensor, value: Tensor, logit_scale: Tensor | None, neighborhood: Neighborhood) -> str | None:
    return None


class _Tables(NamedTuple):
    """Of a block with T tiles of M query slots and N key slots.

    queries (T, M): query of each slot; slots beyond the grid repeat a query of the tile. real (T, M): which do not; None if all.
    keys (T, N). bias (T, 1, M, N): 0 where attended, -inf elsewhere. corners: each tile's first key row and column; reach: rows and columns.
    """

    queries: Tensor
    real: Tensor | None
    keys: Tensor
    bias: Tensor
    corners: tuple[tuple[int, int], ...]
    reach: tuple[int, int]


@functools.lru_cache(maxsize=64)
def _tables(block: Block, dtype: torch.dtype, device: torch.device) -> _Tables:
    tiles = query_tiles(block, _TILE, _TILE)
    (grid_h, grid_w), (keys_h, keys_w) = block.query_grid, block.key_grid
    height, width = min(_TILE, grid_h), min(_TILE, grid_w)
    reach_h, reach_w = (max(len(reach) for reach in axis) for axis in zip(*((tile.key_rows, tile.key_cols) for tile in tiles)))
    rows, cols = torch.tensor(block.axis_starts(0)), torch.tensor(block.axis_starts(1))
    slot_i, slot_j = (grid.flatten() for grid in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    key_i, key_j = (grid.flatten() for grid in torch.meshgrid(torch.arange(reach_h), torch.arange(reach_w), indexing="ij"))

    first = torch.tensor([(tile.query_rows.start, tile.query_cols.start) for tile in tiles])
    # Rectangles all have one size, so those at the far border begin earlier than they must.
    corner = torch.tensor([(min(t.key_rows.start, keys_h - reach_h), min(t.key_cols.start, keys_w - reach_w)) for t in tiles])
    query_i, query_j = first[:, :1] + slot_i, first[:, 1:] + slot_j
    real = (query_i < grid_h) & (query_j < grid_w)
    query_i, query_j = query_i.clamp_max(grid_h - 1), query_j.clamp_max(grid_w - 1)
    keyed_i, keyed_j = corner[:, :1] + key_i, corner[:, 1:] + key_j
    in_rows = _inside(keyed_i, rows[query_i], block.window[0])
    in_cols = _inside(keyed_j, cols[query_j], block.window[1])
    attended = in_rows & in_cols
    queries, keys = query_i * grid_w + query_j, keyed_i * keys_w + keyed_j

    return _Tables(
        queries.to(device),
        None if real.all() else real.to(device),
        keys.to(device),
        torch.zeros(attended.shape, dtype=dtype).masked_fill_(~attended, float("-inf")).unsqueeze(1).to(device),
        tuple((row, col) for row, col in corner.tolist()),
        (reach_h, reach_w),
    )


def _inside(key: Tensor, start: Tensor, window: int) -> Tensor:
    """(T, M, N) bool of keys (T, N) and window starts (T, M)."""
    return (key[:, None] >= start[:, :, None]) & (key[:, None] < start[:, :, None] + window)


class _Workspace:
    """Memory for the gathered rows of one piece, kept from piece to piece: fresh memory costs more than the copies that go into it."""

    def __init__(self) -> None:
        self.buffers: dict[int, Tensor] = {}

    def gather(self, name: int, tensor: Tensor, places: Tensor) -> Tensor:
        """(B, n, H, D) and places (T, M) -> (B * T, H, M, D), whole (H, D) rows copied; valid until the next call with the same `name`.

        On a CPU index_select takes 0.13 ms for 3,920 rows of 512 from a 2-d tensor, 13 ms along an inner axis: batch elements take turns.
        """
        batch, _, heads, dim = tensor.shape
        tiles, slots = places.shape
        size = batch * tiles * slots
        held = self.buffers.get(name)
        if held is None or len(held) < size:
            held = self.buffers[name] = torch.empty((size, heads * dim), dtype=tensor.dtype, device=tensor.device)
        rows = held[:size]
        for source, target in zip(tensor.flatten(2), rows.view(batch, tiles * slots, heads * dim)):
            torch.index_select(source, 0, places.flatten(), out=target)
        return rows.view(batch * tiles, slots, heads, dim).transpose(1, 2)


def _put(target: Tensor, tiles: Tensor, queries: Tensor, real: Tensor | None) -> None:
    """Rows of (B * T, M, F) to their queries (T, M) in target (B, n, F); every query once."""
    places = queries.flatten()
    rows = tiles.reshape(len(target), len(places), -1)
    for source, own in zip(rows, target):
        if real is None:
            own.index_copy_(0, places, source)
        else:
            chosen = real.flatten().nonzero().flatten()
            own.index_copy_(0, places[chosen], source.index_select(0, chosen))


def _pieces(batch: int, tables: _Tables, row: int) -> list[tuple[slice, slice]]:
    """(batch elements, tiles) whose gathered keys are about `_PIECE` elements; `row` is H * D."""
    tiles, keys = tables.keys.shape
    per_piece = max(1, _PIECE // (keys * row))
    if per_piece >= tiles:
        step = per_piece // tiles
        return [(slice(b, min(b + step, batch)), slice(0, tiles)) for b in range(0, batch, step)]
    return [(slice(b, b + 1), slice(t, min(t + per_piece, tiles))) for b in range(batch) for t in range(0, tiles, per_piece)]


def forward(
    query: Tensor, key: Tensor, value: Tensor, logit_scale: Tensor | None, neighborhood: Neighborhood, scale: float
) -> tuple[Tensor, Tensor]:
    query, key = normalized(query, key, logit_scale)
    outs, lses = [], []
    for block in neighborhood.blocks:
        rows, cols = slices(block)
        run = _dense_forward if block.is_dense else _windowed_forward
        out, lse = run(query[:, rows], key[:, cols], value[:, cols], block, scale)
        outs.append(out)
        lses.append(lse)
    if len(outs) == 1:
        return outs[0].contiguous(), lses[0].contiguous()
    return torch.cat(outs, dim=1), torch.cat(lses, dim=2)


def _dense_forward(query: Tensor, key: Tensor, value: Tensor, block: Block, scale: float) -> tuple[Tensor, Tensor]:
    out, lse = attend(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), None, scale)
    return out.transpose(1, 2), lse


def _windowed_forward(query: Tensor, key: Tensor, value: Tensor, block: Block, scale: float) -> tuple[Tensor, Tensor]:
    tables = _tables(block, query.dtype, query.device)
    batch, _, heads, dim = query.shape
    precise = torch.promote_types(query.dtype, torch.float32)
    out = torch.empty((batch, block.num_queries, heads * dim), dtype=query.dtype, device=query.device)
    lse = torch.empty((batch, block.num_queries, heads), dtype=precise, device=query.device)
    space = _Workspace()
    for some, which in _pieces(batch, tables, heads * dim):
        queries, keys, real = tables.queries[which], tables.keys[which], None if tables.real is None else tables.real[which]
        q, k, v = space.gather(0, query[some], queries), space.gather(1, key[some], keys), space.gather(2, value[some], keys)
        tile_out, tile_lse = attend(q, k, v, _bias(tables, which, len(q)), scale)
        _put(out[some], tile_out.transpose(1, 2), queries, real)
        _put(lse[some], tile_lse.transpose(1, 2), queries, real)
    return out.unflatten(2, (heads, dim)), lse.transpose(1, 2)


def _bias(tables: _Tables, which: slice, count: int) -> Tensor:
    """(count, 1, M, N), the tiles' masks repeated over the batch."""
    bias = tables.bias[which]
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
    dq = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    dk, dv = (torch.zeros(key.shape, dtype=key.dtype, device=key.device) for _ in range(2))
    for block in neighborhood.blocks:
        rows, cols = slices(block)
        run = _dense_backward if block.is_dense else _windowed_backward
        block_lse = None if grad_lse is None else grad_lse[:, :, rows]
        block_dq, block_dk, block_dv = run(
            grad_out[:, rows], block_lse, q[:, rows], k[:, cols], value[:, cols], out[:, rows], lse[:, :, rows], block, scale
        )
        dq[:, rows] = block_dq
        # Blocks may share keys (VAR's mask); they are added in a fixed order.
        dk[:, cols] += block_dk
        dv[:, cols] += block_dv
    dq, dk, grad_factor = normalized_backward(dq, dk, query, key, logit_scale)
    return dq, dk, dv, grad_factor


def _dense_backward(
    grad_out: Tensor, grad_lse: Tensor | None, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, block: Block, scale: float
) -> list[Tensor]:
    heads_first = [tensor.transpose(1, 2) for tensor in (query, key, value, out)]
    gradients = attend_backward(grad_out.transpose(1, 2), grad_lse, *heads_first, lse, None, scale)
    return [gradient.transpose(1, 2) for gradient in gradients]


def _windowed_backward(
    grad_out: Tensor, grad_lse: Tensor | None, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, block: Block, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    tables = _tables(block, query.dtype, query.device)
    batch, _, heads, dim = query.shape
    dq = torch.empty((batch, block.num_queries, heads * dim), dtype=query.dtype, device=query.device)
    dk, dv = (torch.zeros((batch, *block.key_grid, heads * dim), dtype=key.dtype, device=key.device) for _ in range(2))
    height, width = tables.reach
    lses = [None if each is None else each.transpose(1, 2).unsqueeze(-1) for each in (lse, grad_lse)]
    space = _Workspace()
    for some, which in _pieces(batch, tables, heads * dim):
        queries, keys, real = tables.queries[which], tables.keys[which], None if tables.real is None else tables.real[which]
        q, o, do = (space.gather(i, tensor[some], queries) for i, tensor in ((0, query), (3, out), (4, grad_out)))
        k, v = space.gather(1, key[some], keys), space.gather(2, value[some], keys)
        tile_lse, tile_grad_lse = (
            None if each is None else space.gather(5 + i, each[some], queries).squeeze(-1) for i, each in enumerate(lses)
        )
        if real is not None:  # slots that repeat a query must not count twice
            once = real.to(do.dtype).repeat(len(q) // len(queries), 1).unsqueeze(1)
            do = do * once.unsqueeze(-1)
            tile_grad_lse = None if tile_grad_lse is None else tile_grad_lse * once
        tile_dq, *of_keys = attend_backward(do, tile_grad_lse, q, k, v, o, tile_lse, _bias(tables, which, len(q)), scale)
        _put(dq[some], tile_dq.transpose(1, 2), queries, real)
        for target, tiles in zip((dk[some], dv[some]), of_keys):
            per_tile = tiles.transpose(1, 2).reshape(len(target), len(queries), height, width, heads * dim)
            for tile, (row, col) in enumerate(tables.corners[which]):
                target[:, row : row + height, col : col + width] += per_tile[:, tile]
    dk, dv = dk.flatten(1, 2), dv.flatten(1, 2)
    return tuple(gradient.unflatten(2, (heads, dim)) for gradient in (dq, dk, dv))  # type: ignore[return-value]


# Time of tiles over time of dense attention, per computed score, and what a block costs beside that, in dense scores. Fitted on two cores
# (float32, 8 heads of 64, forward and backward) at grids of 14 to 48 a side and windows of 3, 7 and 13, by eye and before
# `_PIECE` was halved; close calls may fall either way.
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
    return len(tiles) * height * width * max(len(t.key_rows) for t in tiles) * max(len(t.key_cols) for t in tiles)
