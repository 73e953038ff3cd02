"""O(N k) attention in plain PyTorch, forward and backward: for CPUs, and for any device without triton.

Queries are cut into 8 x 8 tiles (`layout.py`). The keys of a tile are gathered as whole (H x D) rows and
attended to with PyTorch's fused kernel, with the windows as an additive mask. Dense blocks need no gathering.
Nothing of size L x L exists.

Tiles are processed in small pieces that fit in cache, reusing scratch buffers (`workspace.py`). A piece holds
an equal number of tiles for each thread, so that each thread attends to rows that it gathered itself.

dk and dv come out per tile and overlap between tiles. Each tile is added to its rectangle of keys, one after
the other: no scatter-add, and the same bits on every run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mvar_kernels.backends.common import buffers
from mvar_kernels.backends.common.cosine import normalized, normalized_backward
from mvar_kernels.backends.common.dense import attend, attend_backward
from mvar_kernels.backends.tiled.layout import Layout, RowStrip, computed_scores, layout_of
from mvar_kernels.backends.tiled.workspace import Workspace, scatter_tiles
from mvar_kernels.pyramid import Neighborhood, WindowBlock

__all__ = ["backward", "can_run", "computed_scores", "forward"]

# Elements of gathered keys per thread and piece, tuned on two cores: 4 tiles forward and 2 backward at 64 x
# 64 with 8 heads of 64.
_FORWARD_ELEMENTS = 7 << 16
_BACKWARD_ELEMENTS = 1 << 18

_workspace = Workspace()


class _Piece(NamedTuple):
    """Tiles that are gathered together.

    Attributes:
        batch: which batch elements.
        tiles: which tiles.
        first_key_rows: for each strip, its first key row inside the tiles' rectangles.
    """

    batch: slice
    tiles: slice
    first_key_rows: tuple[int, ...]


def can_run(
    query: Tensor, key: Tensor, value: Tensor, logit_scale: Tensor | None, neighborhood: Neighborhood
) -> str | None:
    return None


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
    out = buffers.empty((batch, neighborhood.num_queries, heads * dim), query.dtype, query.device)
    lse = torch.empty((batch, neighborhood.num_queries, heads), dtype=precise, device=query.device)
    with _workspace.lent():
        for block in neighborhood.blocks:
            rows, cols = block.query_slice, block.key_slice
            run = _dense_forward if block.is_dense else _windowed_forward
            run(query[:, rows], key[:, cols], value[:, cols], block, scale, out[:, rows], lse[:, rows])
    return out.unflatten(2, (heads, dim)), lse.transpose(1, 2).contiguous()


def _dense_forward(
    query: Tensor, key: Tensor, value: Tensor, block: WindowBlock, scale: float, out: Tensor, lse: Tensor
) -> None:
    block_out, block_lse = attend(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), None, scale
    )
    out.unflatten(2, query.shape[2:]).copy_(block_out.transpose(1, 2))
    lse.copy_(block_lse.transpose(1, 2))


def _windowed_forward(
    query: Tensor, key: Tensor, value: Tensor, block: WindowBlock, scale: float, out: Tensor, lse: Tensor
) -> None:
    layout = layout_of(block, query.dtype, query.device)
    batch, _, heads, dim = query.shape
    out, lse = (result.unflatten(1, block.query_grid) for result in (out, lse))
    for piece in _pieces(batch, layout, heads * dim, _FORWARD_ELEMENTS):
        queries, keys, rects = (
            layout.queries[piece.tiles],
            layout.keys[piece.tiles],
            layout.rects[piece.tiles],
        )
        q = _workspace.gather(0, query[piece.batch], queries)
        k = _workspace.gather(1, key[piece.batch], keys)
        v = _workspace.gather(2, value[piece.batch], keys)
        for strip, first_key_row in zip(layout.strips, piece.first_key_rows):
            seen = layout.key_slots(strip, first_key_row)
            bias = _repeated_bias(strip, piece.tiles, len(q))
            strip_out, strip_lse = attend(q[:, :, strip.slots], k[:, :, seen], v[:, :, seen], bias, scale)
            for target, tiles in ((out[piece.batch], strip_out), (lse[piece.batch], strip_lse)):
                scatter_tiles(target, tiles.transpose(1, 2), strip.first_row, layout.width, rects)


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
    dq = buffers.empty(query.shape, query.dtype, query.device)
    # Tiles overlap, and blocks may share keys (VAR's mask). Their gradients are summed in a fixed order, and
    # in lse's type, which is at least float32.
    dk, dv = (buffers.zeros(key.shape, lse.dtype, key.device) for _ in range(2))
    with _workspace.lent():
        for block in neighborhood.blocks:
            rows, cols = block.query_slice, block.key_slice
            run = _dense_backward if block.is_dense else _windowed_backward
            run(
                grad_out[:, rows],
                None if grad_lse is None else grad_lse[:, :, rows],
                q[:, rows],
                k[:, cols],
                value[:, cols],
                out[:, rows],
                lse[:, :, rows],
                block,
                scale,
                dq[:, rows],
                dk[:, cols],
                dv[:, cols],
            )
    dq, dk, grad_factor = normalized_backward(dq, dk, query, key, logit_scale)
    return dq, dk.to(key.dtype), dv.to(value.dtype), grad_factor


def _dense_backward(
    grad_out: Tensor, grad_lse: Tensor | None, query: Tensor, key: Tensor, value: Tensor, out: Tensor,
    lse: Tensor, block: WindowBlock, scale: float, dq: Tensor, dk: Tensor, dv: Tensor,
) -> None:  # fmt: skip
    do, q, k, v, o = (tensor.transpose(1, 2) for tensor in (grad_out, query, key, value, out))
    gradients = attend_backward(do, grad_lse, q, k, v, o, lse, None, scale)
    block_dq, block_dk, block_dv = (gradient.transpose(1, 2) for gradient in gradients)
    dq.copy_(block_dq)
    dk.add_(block_dk)
    dv.add_(block_dv)


def _windowed_backward(
    grad_out: Tensor, grad_lse: Tensor | None, query: Tensor, key: Tensor, value: Tensor, out: Tensor,
    lse: Tensor, block: WindowBlock, scale: float, dq: Tensor, dk: Tensor, dv: Tensor,
) -> None:  # fmt: skip
    layout = layout_of(block, query.dtype, query.device)
    batch, _, heads, dim = query.shape
    dq = dq.flatten(2).unflatten(1, block.query_grid)
    dk, dv = (result.flatten(2).unflatten(1, block.key_grid) for result in (dk, dv))
    row_lse = lse.transpose(1, 2).unsqueeze(-1)
    row_grad_lse = None if grad_lse is None else grad_lse.transpose(1, 2).unsqueeze(-1)
    for piece in _pieces(batch, layout, heads * dim, _BACKWARD_ELEMENTS):
        queries, keys, rects = (
            layout.queries[piece.tiles],
            layout.keys[piece.tiles],
            layout.rects[piece.tiles],
        )
        q = _workspace.gather(0, query[piece.batch], queries)
        k = _workspace.gather(1, key[piece.batch], keys)
        v = _workspace.gather(2, value[piece.batch], keys)
        o = _workspace.gather(3, out[piece.batch], queries)
        do = _workspace.gather(4, grad_out[piece.batch], queries)
        tile_lse = _workspace.gather(5, row_lse[piece.batch], queries).squeeze(-1)
        tile_grad_lse = None
        if row_grad_lse is not None:
            tile_grad_lse = _workspace.gather(6, row_grad_lse[piece.batch], queries).squeeze(-1)
        if layout.real is not None:
            # Slots that repeat a query must not count twice in dk and dv.
            once = layout.real[piece.tiles].to(do.dtype).repeat(len(q) // len(queries), 1).unsqueeze(1)
            do = do * once.unsqueeze(-1)
            tile_grad_lse = None if tile_grad_lse is None else tile_grad_lse * once
        for strip, first_key_row in zip(layout.strips, piece.first_key_rows):
            slots, seen = strip.slots, layout.key_slots(strip, first_key_row)
            strip_dq, *strip_dkdv = attend_backward(
                do[:, :, slots],
                None if tile_grad_lse is None else tile_grad_lse[:, :, slots],
                q[:, :, slots],
                k[:, :, seen],
                v[:, :, seen],
                o[:, :, slots],
                tile_lse[:, :, slots],
                _repeated_bias(strip, piece.tiles, len(q)),
                scale,
            )
            scatter_tiles(dq[piece.batch], strip_dq.transpose(1, 2), strip.first_row, layout.width, rects)
            for target, tiles in zip((dk[piece.batch], dv[piece.batch]), strip_dkdv):
                _add_to_keys(target, tiles.transpose(1, 2), layout, piece.tiles, strip, first_key_row)


def _add_to_keys(
    target: Tensor, tiles: Tensor, layout: Layout, which: slice, strip: RowStrip, first_key_row: int
) -> None:
    """Add a strip's gradients (B * T, keys, H, D) to target (B, h, w, H * D), one tile after the other."""
    corners, width = layout.key_corners[which], layout.key_rect[1]
    shape = len(target), len(corners), strip.num_key_rows, width, target.shape[-1]
    per_tile = tiles.reshape(shape)
    for tile, (row, col) in enumerate(corners):
        rectangle = target.narrow(1, row + first_key_row, strip.num_key_rows).narrow(2, col, width)
        rectangle.add_(per_tile[:, tile])


def _pieces(batch: int, layout: Layout, row: int, elements: int) -> Iterator[_Piece]:
    """Cut the tiles of all batch elements into pieces.

    Args:
        batch: batch size.
        layout: the tiles.
        row: H * D.
        elements: elements of gathered keys per thread; at least one tile per thread is taken.
    """
    per_piece = max(1, elements // (layout.keys.shape[1] * row)) * torch.get_num_threads()
    for run in layout.runs:
        start, stop = run.tiles.start, run.tiles.stop
        step = max(1, per_piece // (stop - start))
        for b in range(0, batch, step):
            for t in range(start, stop, per_piece):
                tiles = slice(t, min(t + per_piece, stop))
                yield _Piece(slice(b, min(b + step, batch)), tiles, run.first_key_rows)


def _repeated_bias(strip: RowStrip, tiles: slice, count: int) -> Tensor:
    """Return (count, 1, slots, keys): the masks of the tiles, repeated over the batch."""
    bias = strip.bias[tiles]
    return bias if count == len(bias) else bias.repeat(count // len(bias), 1, 1, 1)
