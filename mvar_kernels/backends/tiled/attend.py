"""Attention of one task, forward and backward."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from mvar_kernels.backends.dense import attend, attend_backward
from mvar_kernels.backends.tiled.layout import Layout, RowStrip
from mvar_kernels.backends.tiled.tasks import HeadTask, TileTask
from mvar_kernels.backends.tiled.workers import Addition
from mvar_kernels.backends.tiled.workspace import Workspace, in_lines, scatter_tiles

scratch = Workspace()


class Operands(NamedTuple):
    """Tensors of a whole call, of which each task reads and writes its part.

    Attributes:
        query: (B, Lq, H, D).
        key, value: (B, Lk, Hkv, D).
        out: (B, Lq, H, D); written by forward.
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
        query: (B, Lq, H, D), written.
        key, value: (B, Lk, Hkv, D), added to.
    """

    out: Tensor
    lse: Tensor | None
    query: Tensor
    key: Tensor
    value: Tensor


def forward_task(task: TileTask | HeadTask, whole: Operands) -> None:
    """Write out and lse of the task's queries."""
    if isinstance(task, HeadTask):
        _forward_heads(task, whole)
    else:
        _forward_tiles(task, whole)


def backward_task(task: TileTask | HeadTask, whole: Operands, gradients: Gradients) -> Addition:
    """Write dq of the task's queries; return what adds to dk and dv of the keys that they see."""
    if isinstance(task, HeadTask):
        return _backward_heads(task, whole, gradients)
    return _backward_tiles(task, whole, gradients)


def _forward_heads(task: HeadTask, whole: Operands) -> None:
    rows, cols = (task.block.query_slice, task.heads), (task.block.key_slice, task.key_heads)
    out, lse = attend(
        _heads(task, whole.query, rows),
        _heads(task, whole.key, cols),
        _heads(task, whole.value, cols),
        None,
        whole.scale,
    )
    _heads(task, whole.out, rows).copy_(out)
    _heads(task, whole.lse, rows).copy_(lse)


def _backward_heads(task: HeadTask, whole: Operands, gradients: Gradients) -> Addition:
    rows, cols = (task.block.query_slice, task.heads), (task.block.key_slice, task.key_heads)
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
    _heads(task, gradients.query, rows).copy_(dq)

    def add() -> None:
        _heads(task, gradients.key, cols).add_(dk)
        _heads(task, gradients.value, cols).add_(dv)

    return add


def _heads(task: HeadTask, tensor: Tensor, tokens_and_heads: tuple[slice, slice]) -> Tensor:
    """Return the task's part of a tensor (B, L, H, ...) as (b, h, tokens, ...)."""
    tokens, heads = tokens_and_heads
    return tensor[task.batch, tokens, heads].transpose(1, 2)


def _forward_tiles(task: TileTask, whole: Operands) -> None:
    layout = task.layout
    queries, keys = layout.queries[task.tiles], layout.keys(task.tiles)
    lines = in_lines(layout.rects[task.tiles])
    q = scratch.gather(0, whole.query[task.batch], queries)
    k = scratch.gather(1, whole.key[task.batch], keys)
    v = scratch.gather(2, whole.value[task.batch], keys)
    out, lse = _query_grid(task, whole.out), _query_grid(task, whole.lse)
    for strip, shift in zip(layout.strips, task.key_shifts):
        slots, seen = strip.slots, strip.key_slots(shift)
        bias = strip.bias(task.tiles, len(q) // len(queries))
        strip_out, strip_lse = attend(q[:, :, slots], k[:, :, seen], v[:, :, seen], bias, whole.scale)
        for target, tiles in ((out, strip_out), (lse, strip_lse)):
            scatter_tiles(target, tiles.transpose(1, 2), strip.first_row, layout.slots, lines)


def _query_grid(task: TileTask, tensor: Tensor) -> Tensor:
    """Return the task's part of a tensor (B, L, H, ...) as (b, *grid, F)."""
    block = task.layout.blocks[0]
    return tensor[task.batch, block.query_slice].flatten(2).unflatten(1, block.query_grid)


def _backward_tiles(task: TileTask, whole: Operands, gradients: Gradients) -> Addition:
    layout = task.layout
    queries, keys = layout.queries[task.tiles], layout.keys(task.tiles)
    lines = in_lines(layout.rects[task.tiles])
    q = scratch.gather(0, whole.query[task.batch], queries)
    k = scratch.gather(1, whole.key[task.batch], keys)
    v = scratch.gather(2, whole.value[task.batch], keys)
    o = scratch.gather(3, whole.out[task.batch], queries)
    do = scratch.gather(4, gradients.out[task.batch], queries)
    lse = scratch.gather(5, whole.lse[task.batch].unsqueeze(-1), queries).squeeze(-1)
    grad_lse = None
    if gradients.lse is not None:
        grad_lse = scratch.gather(6, gradients.lse[task.batch].unsqueeze(-1), queries).squeeze(-1)
    if layout.real is not None:
        # Slots that repeat a query must not count twice in dk and dv.
        once = layout.real[task.tiles].to(do.dtype).repeat(len(q) // len(queries), 1).unsqueeze(1)
        do = do * once.unsqueeze(-1)
        grad_lse = None if grad_lse is None else grad_lse * once
    dq = _query_grid(task, gradients.query)
    of_keys = []
    for strip, shift in zip(layout.strips, task.key_shifts):
        slots, seen = strip.slots, strip.key_slots(shift)
        strip_dq, strip_dk, strip_dv = attend_backward(
            do[:, :, slots],
            None if grad_lse is None else grad_lse[:, :, slots],
            q[:, :, slots],
            k[:, :, seen],
            v[:, :, seen],
            o[:, :, slots],
            lse[:, :, slots],
            strip.bias(task.tiles, len(q) // len(queries)),
            whole.scale,
        )
        scatter_tiles(dq, strip_dq.transpose(1, 2), strip.first_row, layout.slots, lines)
        of_keys.append((strip, strip_dk, strip_dv))

    def add() -> None:
        for strip, strip_dk, strip_dv in of_keys:
            for target, tiles in ((gradients.key, strip_dk), (gradients.value, strip_dv)):
                _add_to_keys(target[task.batch], tiles.transpose(1, 2), layout, task.tiles, strip)

    return add


def _add_to_keys(target: Tensor, tiles: Tensor, layout: Layout, which: slice, strip: RowStrip) -> None:
    """Add a strip's gradients (B * T, keys, H, D) to target (B, Lk, H, D), one tile after the other."""
    counts = [math.prod(part.shape) for part in strip.key_rows]
    parts = tiles.flatten(2).unflatten(0, (len(target), -1)).split(counts, dim=2)
    for block, seen_by_tiles, part, of_part in zip(layout.blocks, layout.seen, strip.key_rows, parts):
        grid = target[:, block.key_slice].flatten(2).unflatten(1, block.key_grid)
        per_tile = of_part.unflatten(2, part.shape)
        for tile, (seen, corner) in enumerate(zip(seen_by_tiles[which], part.corners[which])):
            box, source = grid, per_tile[:, tile]
            for axis, (keys, first, size) in enumerate(zip(seen.keys, corner, part.shape), 1):
                begin = max(first, keys.start)
                length = min(first + size, keys.stop) - begin
                box, source = box.narrow(axis, begin, length), source.narrow(axis, begin - first, length)
            box.add_(source)
