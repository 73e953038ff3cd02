"""O(N k) attention in plain PyTorch, forward and backward: CPUs, and any device without triton.

Queries are cut into 8 x 8 tiles; a tile's keys are one rectangle, gathered as whole (heads x D) rows, and the windows inside it are an
additive mask over (64, rectangle). Dense blocks need no gathering. Nothing of size L x L exists.

dk and dv come out per tile and overlap between tiles. They are summed without scatter-add: a table lists, for every key, its rows in the tile
results (at most 2 x 2 for windows up to 9), and gathers in that fixed order. So the result is the same bit for bit on every run.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from mvar_kernels.backends.cosine import normalized, normalized_backward
from mvar_kernels.backends.dense import attend, attend_backward
from mvar_kernels.backends.sdpa import slices
from mvar_kernels.backends.tiling import Tile, query_tiles
from mvar_kernels.pyramid import Block, Neighborhood

NAME = "tiled"

_TILE = 8
# Elements of gathered keys at a time: large enough to keep all threads busy, small enough to stay near the caches.
_CHUNK_ELEMENTS = 1 << 21


def can_run(query: Tensor, key: Tensor, value: Tensor, logit_scale: Tensor | None, neighborhood: Neighborhood) -> str | None:
    return None


class _Tables(NamedTuple):
    """Of a block with T tiles of M query slots and N key slots.

    queries (T, M): query of each slot; slots beyond the tile repeat a query of it. unpadded (T, M) or None: 1 for real slots.
    keys (T, N). bias (T, M, N): 0 where attended, -inf elsewhere. order (num_queries,): slot of each query in the T * M.
    fold (c, num_keys): slots of each key in the T * N, with T * N (a row of zeros) where a key has fewer than c.
    """

    queries: Tensor
    unpadded: Tensor | None
    keys: Tensor
    bias: Tensor
    order: Tensor
    fold: Tensor


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

    order = torch.empty(block.num_queries, dtype=torch.int64)
    order[queries[real]] = real.flatten().nonzero().flatten()
    return _Tables(
        queries.to(device),
        None if real.all() else real.to(dtype).to(device),
        keys.to(device),
        torch.zeros(attended.shape, dtype=dtype).masked_fill_(~attended, float("-inf")).to(device),
        order.to(device),
        _fold(keys, attended.any(dim=1), block.num_keys).to(device),
    )


def _inside(key: Tensor, start: Tensor, window: int) -> Tensor:
    """(T, M, N) bool of keys (T, N) and window starts (T, M)."""
    return (key[:, None] >= start[:, :, None]) & (key[:, None] < start[:, :, None] + window)


def _fold(keys: Tensor, seen: Tensor, num_keys: int) -> Tensor:
    """For every key its slots that some query of the tile sees; slots that none sees hold zeros and are left out."""
    slots = seen.flatten().nonzero().flatten()
    owner, by_key = keys.flatten()[slots].sort(stable=True)
    counts = torch.bincount(owner, minlength=num_keys)
    rank = torch.arange(len(owner)) - (counts.cumsum(0) - counts)[owner]
    fold = torch.full((int(counts.max()), num_keys), keys.numel())
    fold[rank, owner] = slots[by_key]
    return fold


def _gather(tensor: Tensor, slots: Tensor) -> Tensor:
    """(B, n, H, D) and slots (T, M) -> (B * T, H, M, D): whole (H, D) rows are copied."""
    batch, _, heads, dim = tensor.shape
    rows = tensor.flatten(2).index_select(1, slots.flatten())
    return rows.view(batch * slots.shape[0], slots.shape[1], heads, dim).transpose(1, 2)


def _chunks(batch: int, tables: _Tables, row: int) -> list[tuple[slice, slice]]:
    """(batch, tiles) slices whose gathered keys are about `_CHUNK_ELEMENTS` elements; `row` is H * D."""
    tiles, keys = tables.keys.shape
    per_step = max(1, _CHUNK_ELEMENTS // (keys * row))
    if per_step >= tiles:
        step = per_step // tiles
        return [(slice(b, min(b + step, batch)), slice(0, tiles)) for b in range(0, batch, step)]
    return [(slice(b, b + 1), slice(t, min(t + per_step, tiles))) for b in range(batch) for t in range(0, tiles, per_step)]


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
    tiles, slots = tables.queries.shape
    precise = torch.promote_types(query.dtype, torch.float32)
    out = torch.empty((batch, tiles * slots, heads * dim), dtype=query.dtype, device=query.device)
    lse = torch.empty((batch, tiles * slots, heads), dtype=precise, device=query.device)
    for some, which in _chunks(batch, tables, heads * dim):
        q, k, v = _gathered(query[some], key[some], value[some], tables, which)
        tile_out, tile_lse = attend(q, k, v, _bias(tables, which, len(q)), scale)
        where = slice(which.start * slots, which.stop * slots)
        out[some, where] = tile_out.transpose(1, 2).reshape(out[some, where].shape)
        lse[some, where] = tile_lse.transpose(1, 2).reshape(lse[some, where].shape)
    out = out.index_select(1, tables.order).unflatten(2, (heads, dim))
    return out, lse.index_select(1, tables.order).transpose(1, 2)


def _gathered(query: Tensor, key: Tensor, value: Tensor, tables: _Tables, which: slice) -> tuple[Tensor, Tensor, Tensor]:
    return _gather(query, tables.queries[which]), _gather(key, tables.keys[which]), _gather(value, tables.keys[which])


def _bias(tables: _Tables, which: slice, count: int) -> Tensor:
    """(count, 1, M, N), the tiles' masks repeated over the batch."""
    bias = tables.bias[which]
    return (bias if count == len(bias) else bias.repeat(count // len(bias), 1, 1)).unsqueeze(1)


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
    (tiles, slots), reach = tables.queries.shape, tables.keys.shape[1]
    dq = torch.empty((batch, tiles * slots, heads * dim), dtype=query.dtype, device=query.device)
    folded = [torch.zeros((batch, block.num_keys, heads * dim), dtype=key.dtype, device=key.device) for _ in range(2)]
    # One batch element's gradients of all its gathered keys at a time; the last row stays zero, for keys in fewer tiles than others.
    per_key = [torch.empty((1, tiles * reach + 1, heads * dim), dtype=key.dtype, device=key.device) for _ in range(2)]
    for gradient in per_key:
        gradient[:, -1] = 0
    heads_last_lse = lse.transpose(1, 2)
    for b in range(batch):
        some = slice(b, b + 1)
        for _, which in _chunks(1, tables, heads * dim):
            q, k, v = _gathered(query[some], key[some], value[some], tables, which)
            o, do = (_gather(tensor[some], tables.queries[which]) for tensor in (out, grad_out))
            unpadded = None if tables.unpadded is None else tables.unpadded[which][:, None, :]
            if unpadded is not None:
                do = do * unpadded[..., None]
            tile_lse = _gather_rows(heads_last_lse[some], tables.queries[which])
            tile_grad_lse = None
            if grad_lse is not None:
                tile_grad_lse = _gather_rows(grad_lse.transpose(1, 2)[some], tables.queries[which])
                tile_grad_lse = tile_grad_lse if unpadded is None else tile_grad_lse * unpadded
            gradients = attend_backward(do, tile_grad_lse, q, k, v, o, tile_lse, _bias(tables, which, len(q)), scale)
            dq[some, which.start * slots : which.stop * slots] = gradients[0].transpose(1, 2).reshape(1, -1, heads * dim)
            for target, gradient in zip(per_key, gradients[1:]):
                target[:, which.start * reach : which.stop * reach] = gradient.transpose(1, 2).reshape(1, -1, heads * dim)
        for target, gradient in zip(folded, per_key):
            for row in tables.fold:
                target[b] += gradient[0].index_select(0, row)
    dk, dv = (gradient.unflatten(2, (heads, dim)) for gradient in folded)
    return dq.index_select(1, tables.order).unflatten(2, (heads, dim)), dk, dv


def _gather_rows(tensor: Tensor, slots: Tensor) -> Tensor:
    """(1, n, H) and slots (T, M) -> (T, H, M)."""
    return tensor.index_select(1, slots.flatten()).view(*slots.shape, -1).transpose(1, 2)


# Of a windowed block: time of tiles over time of all its pairs computed dense, per pair. Measured on two cores (float32, 8 heads of 64).
_TILED_PER_PAIR = 1.6
_TILED_PER_BLOCK = 60_000


def or_sdpa(neighborhood: Neighborhood) -> tuple[str, str]:
    """ "tiled" or "sdpa", whichever is expected to be faster on a CPU, and why in one line.

    Per batch element and head, in units of one dense score. Dense blocks cost both the same.
    """
    dense = tiled = 0.0
    for block in neighborhood.blocks:
        if not block.is_dense:
            dense += block.num_queries * block.num_keys
            tiled += _TILED_PER_PAIR * _tile_pairs(block) + _TILED_PER_BLOCK
    if tiled < dense:
        return "tiled", f"its tiles compute {tiled / dense:.0%} of what dense attention would"
    return "sdpa", "grids this small are faster dense"


@functools.lru_cache(maxsize=256)
def _tile_pairs(block: Block) -> int:
    def pairs(tile: Tile) -> int:
        return len(tile.query_rows) * len(tile.query_cols) * len(tile.key_rows) * len(tile.key_cols)

    return sum(pairs(tile) for tile in query_tiles(block, _TILE, _TILE))
