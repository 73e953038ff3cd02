"""Copies between the packed sequence and tiles, in scratch memory that is kept from call to call."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from mvar_kernels.backends.tiled.layout import SlotRect

# Scratch bytes that each calling thread keeps between calls, per thread that works for it. 64 x 64 with 8
# heads of 64 needs half of it.
KEPT_BYTES = 8 << 20


class Workspace(threading.local):
    """Scratch memory for the gathered rows of one piece, one set for every thread that calls.

    It is kept from piece to piece and, on a CPU, from call to call, because page faults of fresh memory cost
    more than the copies that go into it.
    """

    def __init__(self) -> None:
        self.buffers: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}

    def gather(self, number: int, tensor: Tensor, tokens: Tensor) -> Tensor:
        """Copy whole (H, D) rows.

        Args:
            number: which buffer; the result is valid until the next call with the same number.
            tensor: (B, n, H, D).
            tokens: (T, M) rows of it.

        Returns:
            (B * T, H, M, D).
        """
        batch, _, heads, dim = tensor.shape
        tiles, slots = tokens.shape
        buffer = self._buffer((number, tensor.dtype, tensor.device), batch * tiles * slots * heads * dim)
        rows = buffer.view(batch * tiles * slots, heads * dim)
        # One batch element at a time: index_select on a CPU is a hundred times slower along an inner axis.
        for source, target in zip(tensor.flatten(2), rows.view(batch, tiles * slots, heads * dim)):
            torch.index_select(source, 0, tokens.flatten(), out=target)
        return rows.view(batch * tiles, slots, heads, dim).transpose(1, 2)

    def _buffer(self, key: tuple[int, torch.dtype, torch.device], size: int) -> Tensor:
        buffer = self.buffers.get(key)
        if buffer is None or len(buffer) < size:
            # A buffer that was created under inference mode could not be written by a later call outside of
            # it.
            with torch.inference_mode(False):
                buffer = self.buffers[key] = torch.empty(size, dtype=key[1], device=key[2])
        return buffer[:size]

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Use the workspace for one call; afterwards free it if it is too large or not on the CPU."""
        try:
            yield
        finally:
            held = sum(buffer.nbytes for buffer in self.buffers.values())
            elsewhere = any(device.type != "cpu" for _, _, device in self.buffers)
            if elsewhere or held > KEPT_BYTES * torch.get_num_threads():
                self.buffers.clear()


def scatter_tiles(
    target: Tensor, tiles: Tensor, first_row: int, width: int, rects: tuple[SlotRect, ...]
) -> None:
    """Copy the slots of T tiles to their places; every query is written once.

    Args:
        target: (B, h, w, F), written.
        tiles: (B * T, M, F), slots of the tiles.
        first_row: row of the tile that the first slot lies in.
        width: slots per row of a tile.
        rects: where each tile lies in the target.
    """
    per_tile = tiles.reshape(len(target), len(rects), -1, width, target.shape[-1])
    # Strided copies of rectangles, as these use all threads and index_copy_ uses one.
    for group, first in _side_by_side(rects):
        # (B, rows, tiles, columns, F)
        rows = per_tile[:, group, : max(0, first.height - first_row), : first.width].transpose(1, 2)
        count, height = rows.shape[2], rows.shape[1]
        span = target.narrow(1, first.row + min(first_row, first.height), height)
        span = span.narrow(2, first.col, count * first.width)
        span.unflatten(2, (count, first.width)).copy_(rows)


@functools.lru_cache(maxsize=1024)
def _side_by_side(rects: tuple[SlotRect, ...]) -> tuple[tuple[slice, SlotRect], ...]:
    """Group neighbouring tiles of one size in a row of tiles; return each group with its first place."""
    groups, begin = [], 0
    for tile in range(1, len(rects) + 1):
        first = rects[begin]
        next_col = first.col + (tile - begin) * first.width
        if tile == len(rects) or rects[tile] != first._replace(col=next_col):
            groups.append((slice(begin, tile), first))
            begin = tile
    return tuple(groups)
