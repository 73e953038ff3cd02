"""Attention of one task, forward and backward."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mvar_kernels.backends.common.dense import attend, attend_backward
from mvar_kernels.backends.tiled.layout import Layout, RowStrip
from mvar_kernels.backends.tiled.tasks import HeadTask, TileTask
from mvar_kernels.backends.tiled.workers import Wait
from mvar_kernels.backends.tiled.workspace import Workspace, scatter_tiles

scratch = Workspace()


class Operands(NamedTuple):
    """Tensors of a whole call, of which each task reads and writes its part.

    Attributes:
        query, key, value: (B, L, H, D).
        out: (B, Lq, H, D); written by forward, in at least float32 where it merges.
        lse: (B, Lq, H); written by forward.
        scale: factor of the logits.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor
    lse: Tensor
    scale: float


class Gradients(NamedTuple):
    """What only backward reads and writes.

    Attributes:
        out: (B, Lq, H, D).
        lse: (B, Lq, H), or None.
        query: (B, Lq, H, D), written, or added to.
        key, value: (B, Lk, H, D), added to.
    """

    out: Tensor
    lse: Tensor | None
    query: Tensor
    key: Tensor
    value: Tensor


def forward_task(task: TileTask | HeadTask, wait: Wait, whole: Operands, merge: bool) -> None:
    """Write out and lse of the task's queries; `merge` them with what other keys left there."""
    if isinstance(task, HeadTask):
        _forward_heads(task, whole, merge)
    else:
        _forward_tiles(task, whole, merge)


def backward_task(
    task: TileTask | HeadTask, wait: Wait, whole: Operands, gradients: Gradients, add: bool
) -> None:
    """Write dq of the task's queries, or add to it; after `wait` add to dk and dv of the keys they see."""
    if isinstance(task, HeadTask):
        _backward_heads(task, whole, gradients, add)
    else:
        _backward_tiles(task, wait, whole, gradients, add)


def _merged(out: Tensor, lse: Tensor, other_out: Tensor, other_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Return out (..., D) and lse (...) of a softmax over two sets of keys, given those of each."""
    both = torch.logaddexp(lse, other_lse)
    # 1 - share would lose the digits of a small share.
    share, other_share = (torch.exp(each - both).unsqueeze(-1) for each in (lse, other_lse))
    # What `attend` returned belongs to the caller. New memory costs more than the arithmetic.
    return other_out.to(share.dtype).mul_(other_share).addcmul_(out.to(share.dtype), share), both


def _forward_heads(task: HeadTask, whole: Operands, merge: bool) -> None:
    rows, cols = task.block.query_slice, task.block.key_slice
    out, lse = attend(
        _heads(task, whole.query, rows),
        _heads(task, whole.key, cols),
        _heads(task, whole.value, cols),
        None,
        whole.scale,
    )
    target_out, target_lse = _heads(task, whole.out, rows), _heads(task, whole.lse, rows)
    if merge:
        out, lse = _merged(target_out, target_lse, out, lse)
    target_out.copy_(out)
    target_lse.copy_(lse)


def _backward_heads(task: HeadTask, whole: Operands, gradients: Gradients, add: bool) -> None:
    rows, cols = task.block.query_slice, task.block.key_slice
    dq, dk, dv = attend_backward(
        _heads(task, gradients.out, rows),
        None if gradients.lse is None else _heads(task, gradients.lse, rows),
        _heads(task, whole.query, rows),
        _heads(task, whole.key, cols),
        _heads(task, whole.value, cols),
        _heads(task, whole.out, rows),
        _heads(task, whole.lse, rows),
        None,
        whole.scale,
    )
    target = _heads(task, gradients.query, rows)
    target.copy_(target + dq if add else dq)
    _heads(task, gradients.key, cols).add_(dk)
    _heads(task, gradients.value, cols).add_(dv)


def _heads(task: HeadTask, tensor: Tensor, tokens: slice) -> Tensor:
    """Return the task's part of a tensor (B, L, H, ...) as (b, h, tokens, ...)."""
    return tensor[task.batch, tokens, task.heads].transpose(1, 2)


def _forward_tiles(task: TileTask, whole: Operands, merge: bool) -> None:
    layout, rows, cols = task.layout, task.block.query_slice, task.block.key_slice
    queries, keys, rects = layout.queries[task.tiles], layout.keys[task.tiles], layout.rects[task.tiles]
    q = scratch.gather(0, whole.query[task.batch, rows], queries)
    k = scratch.gather(1, whole.key[task.batch, cols], keys)
    v = scratch.gather(2, whole.value[task.batch, cols], keys)
    out = whole.out[task.batch, rows].flatten(2).unflatten(1, task.block.query_grid)
    lse = whole.lse[task.batch, rows].unflatten(1, task.block.query_grid)
    if merge:
        # All of the tiles' queries are read before any strip writes.
        old_out = scratch.gather(3, whole.out[task.batch, rows], queries)
        old_lse = scratch.gather(5, whole.lse[task.batch, rows].unsqueeze(-1), queries).squeeze(-1)
    for strip, first_key_row in zip(layout.strips, task.first_key_rows):
        slots, seen = strip.slots, layout.key_slots(strip, first_key_row)
        bias = _repeated_bias(strip, task.tiles, len(q))
        strip_out, strip_lse = attend(q[:, :, slots], k[:, :, seen], v[:, :, seen], bias, whole.scale)
        if merge:
            strip_out, strip_lse = _merged(old_out[:, :, slots], old_lse[:, :, slots], strip_out, strip_lse)
        for target, tiles in ((out, strip_out), (lse, strip_lse)):
            scatter_tiles(target, tiles.transpose(1, 2), strip.first_row, layout.width, rects)


def _backward_tiles(task: TileTask, wait: Wait, whole: Operands, gradients: Gradients, add: bool) -> None:
    layout, rows, cols = task.layout, task.block.query_slice, task.block.key_slice
    queries, keys, rects = layout.queries[task.tiles], layout.keys[task.tiles], layout.rects[task.tiles]
    q = scratch.gather(0, whole.query[task.batch, rows], queries)
    k = scratch.gather(1, whole.key[task.batch, cols], keys)
    v = scratch.gather(2, whole.value[task.batch, cols], keys)
    o = scratch.gather(3, whole.out[task.batch, rows], queries)
    do = scratch.gather(4, gradients.out[task.batch, rows], queries)
    lse = scratch.gather(5, whole.lse[task.batch, rows].unsqueeze(-1), queries).squeeze(-1)
    grad_lse = None
    if gradients.lse is not None:
        grad_lse = scratch.gather(6, gradients.lse[task.batch, rows].unsqueeze(-1), queries).squeeze(-1)
    if layout.real is not None:
        # Slots that repeat a query must not count twice in dk and dv.
        once = layout.real[task.tiles].to(do.dtype).repeat(len(q) // len(queries), 1).unsqueeze(1)
        do = do * once.unsqueeze(-1)
        grad_lse = None if grad_lse is None else grad_lse * once
    dq = gradients.query[task.batch, rows].flatten(2).unflatten(1, task.block.query_grid)
    dk, dv = (
        gradient[task.batch, cols].flatten(2).unflatten(1, task.block.key_grid)
        for gradient in (gradients.key, gradients.value)
    )
    of_keys = []
    for strip, first_key_row in zip(layout.strips, task.first_key_rows):
        slots, seen = strip.slots, layout.key_slots(strip, first_key_row)
        strip_dq, strip_dk, strip_dv = attend_backward(
            do[:, :, slots],
            None if grad_lse is None else grad_lse[:, :, slots],
            q[:, :, slots],
            k[:, :, seen],
            v[:, :, seen],
            o[:, :, slots],
            lse[:, :, slots],
            _repeated_bias(strip, task.tiles, len(q)),
            whole.scale,
        )
        scatter_tiles(dq, strip_dq.transpose(1, 2), strip.first_row, layout.width, rects, add)
        of_keys.append((strip, first_key_row, strip_dk, strip_dv))
    wait()
    for strip, first_key_row, strip_dk, strip_dv in of_keys:
        for target, tiles in ((dk, strip_dk), (dv, strip_dv)):
            _add_to_keys(target, tiles.transpose(1, 2), layout, task.tiles, strip, first_key_row)


def _add_to_keys(
    target: Tensor, tiles: Tensor, layout: Layout, which: slice, strip: RowStrip, first_key_row: int
) -> None:
    """Add a strip's gradients (B * T, keys, H, D) to target (B, h, w, H * D), one tile after the other.

    Only keys that a tile sees are written: others may belong to a tile of the same turn.
    """
    tiles_of_task, width = layout.seen[which], layout.key_rect[1]
    shape = len(target), len(tiles_of_task), strip.num_key_rows, width, target.shape[-1]
    per_tile = tiles.reshape(shape)
    for tile, (seen, corner) in enumerate(zip(tiles_of_task, layout.key_corners[which])):
        top, left = corner[0] + first_key_row, corner[1]
        rows = range(max(top, seen.key_rows.start), min(top + strip.num_key_rows, seen.key_rows.stop))
        cols = seen.key_cols
        rectangle = target.narrow(1, rows.start, len(rows)).narrow(2, cols.start, len(cols))
        source = per_tile[:, tile].narrow(1, rows.start - top, len(rows))
        rectangle.add_(source.narrow(2, cols.start - left, len(cols)))


def _repeated_bias(strip: RowStrip, tiles: slice, count: int) -> Tensor:
    """Return (count, 1, slots, keys): the masks of the tiles, repeated over the batch."""
    bias = strip.bias[tiles]
    return bias if count == len(bias) else bias.repeat(count // len(bias), 1, 1, 1)
