"""Memory that `tiled` uses again, of large results and of scratch, and copies between sequence and tiles."""

from __future__ import annotations

import ctypes
import itertools
import math
import threading
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from mvar_kernels import caches
from mvar_kernels.backends.tiled.layout import SlotRect

# From about this size on glibc returns freed results to the system, once a few of them are free.
_LEAST_BYTES = 1 << 20
# Kept while unused, by all threads together: out, dq, dk and dv of a 128 x 128 grid with 8 heads of 64.
_KEPT_BYTES = 128 << 20


class _Unused:
    """Memory that nobody holds, oldest first.

    There is no lock: the garbage collector may call `put` in the middle of any line, even of `take` in the
    same thread. Every step is one operation of a dict, and whoever pops a piece owns it.
    """

    def __init__(self) -> None:
        self.pieces: dict[tuple[int, int], Tensor] = {}  # by (bytes, serial number)
        self._numbers = itertools.count()

    def take(self, size: int) -> Tensor:
        """Return (size,) uint8, reused or fresh."""
        for key in list(self.pieces):
            piece = self.pieces.pop(key, None) if key[0] == size else None
            if piece is not None:
                return piece
        return torch.empty(size, dtype=torch.uint8)

    def put(self, piece: Tensor) -> None:
        """Keep a piece; the oldest pieces go when all together become too large."""
        self.pieces[len(piece), next(self._numbers)] = piece
        held = list(self.pieces)
        too_much = sum(size for size, _ in held) - _KEPT_BYTES
        for key in held:
            if too_much > 0:
                self.pieces.pop(key, None)
                too_much -= key[0]


_unused = _Unused()
caches.on_clear(lambda: _unused.pieces.clear())


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Like `torch.empty`, but reuses the memory of large results on a CPU, once nobody holds them.

    Otherwise every page of the next result is faulted in again: an eighth of the time at 128 x 128
    (docs/measurements.md).

    A result is a tensor over a ctypes array over the memory. PyTorch holds that array for as long as any
    tensor, view or graph uses the storage, and when the array dies the memory is free again. Like all tensors
    over foreign memory, such results cannot be enlarged by `resize_`.
    """
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or not _LEAST_BYTES <= size <= _KEPT_BYTES:
        return torch.empty(shape, dtype=dtype, device=device)
    piece = _unused.take(size)
    array = (ctypes.c_char * size).from_address(piece.data_ptr())
    weakref.finalize(array, _unused.put, piece).atexit = False
    return torch.frombuffer(array, dtype=dtype).view(shape)


# Scratch bytes that each thread keeps between calls, per core that its operations use. 64 x 64 with 8 heads
# of 64 needs half of it.
KEPT_BYTES = 8 << 20


class _Buffers(dict[tuple[int, torch.dtype, torch.device], Tensor]):
    """The scratch memory of one thread by number, type and device; hashed by identity, for a WeakSet."""

    __hash__ = object.__hash__  # type: ignore[assignment]


_of_threads: weakref.WeakSet[_Buffers] = weakref.WeakSet()


@caches.on_clear
def _clear_all() -> None:
    # A task that runs holds what it uses.
    for buffers in list(_of_threads):
        buffers.clear()


class Workspace(threading.local):
    """Scratch memory for the gathered rows of one task, one set for every thread.

    It is kept from task to task and, on a CPU, from call to call, because page faults of fresh memory cost
    more than the copies that go into it. It belongs to inference mode, which every task runs under.
    """

    def __init__(self) -> None:
        self.buffers = _Buffers()
        _of_threads.add(self.buffers)

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
            buffer = self.buffers[key] = torch.empty(size, dtype=key[1], device=key[2])
        return buffer[:size]

    def trim(self) -> None:
        """Free this thread's scratch memory if it is too large or not on the CPU."""
        held = sum(buffer.nbytes for buffer in self.buffers.values())
        elsewhere = any(device.type != "cpu" for _, _, device in self.buffers)
        if elsewhere or held > KEPT_BYTES * torch.get_num_threads():
            self.buffers.clear()


def scatter_tiles(
    target: Tensor,
    tiles: Tensor,
    first_row: int,
    slots: tuple[int, ...],
    lines: list[Line],
) -> None:
    """Copy the slots of T tiles to their places; every query is written once.

    Args:
        target: (B, *grid, F), written.
        tiles: (B * T, M, F), slots of the tiles.
        first_row: row of the tile that the first slot lies in.
        slots: query slots per axis of a tile.
        lines: where the tiles lie in the target, see `in_lines`.
    """
    rank = len(slots)
    per_tile = tiles.reshape(len(target), lines[-1][0].stop, -1, *slots[1:], target.shape[-1])
    # Strided copies of boxes, as index_copy_ takes twice as long.
    for group, first in lines:
        count, rows = group.stop - group.start, first.shape[0] - first_row
        if rows < 1:
            continue
        sizes = min(rows, per_tile.shape[2]), *first.shape[1:]
        corner = first.corner[0] + first_row, *first.corner[1:]
        # In one dimension a strip has fewer places along the last axis than the tile.
        step = first.shape[-1]
        ends = zip(corner, (*sizes[:-1], (count - 1) * step + sizes[-1]))
        source_slices = slice(None), group, *map(slice, sizes)
        span_slices = slice(None), *(slice(begin, begin + size) for begin, size in ends)
        source, span = per_tile[source_slices], target[span_slices]
        # (B, all axes but the last, tiles, F, the last axis)
        span.unfold(rank, sizes[-1], step).copy_(source.movedim(1, rank).transpose(-1, -2))


# Tiles side by side along the last axis, and the place of the first.
Line = tuple[slice, SlotRect]


def in_lines(rects: Sequence[SlotRect]) -> list[Line]:
    """Group tiles of one size that lie side by side along the last axis."""
    lines, begin = [], 0
    for tile in range(1, len(rects) + 1):
        first = rects[begin]
        expected = (*first.corner[:-1], first.corner[-1] + (tile - begin) * first.shape[-1])
        if tile == len(rects) or rects[tile] != first._replace(corner=expected):
            lines.append((slice(begin, tile), first))
            begin = tile
    return lines
