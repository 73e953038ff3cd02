"""Reuse of the memory of large results on a CPU, once nobody holds the result any more.

glibc returns freed blocks above 32 MiB to the system, so every page of the next result is faulted in again,
on every call. That costs an eighth of the time at 128 x 128 (docs/measurements.md).

A result is a tensor over a ctypes array over the memory. PyTorch holds that array for as long as any tensor,
view or graph uses the storage, and when the array dies the memory is free again. So nothing has to be given
back by hand, and memory in use is never handed out. Like all tensors over foreign memory, such results cannot
be enlarged by `resize_`.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from mvar_kernels import caches

# glibc already reuses smaller results: out, dq, dk and dv together then stay below the 64 MiB from which on
# it trims.
_LEAST_BYTES = 16 << 20
# Kept while unused, by all threads together: out, dq, dk and dv of a 128 x 128 grid with 8 heads of 64.
_KEPT_BYTES = 128 << 20


class _Unused:
    """Memory that nobody holds, oldest first.

    There is no lock: the garbage collector may call `put` in the middle of any line, even of `take` in the
    same thread. Instead every step is one operation of a dict, and whoever pops a piece owns it.
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
    """Do what `torch.empty` does, from reused memory where that helps."""
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or not _LEAST_BYTES <= size <= _KEPT_BYTES:
        return torch.empty(shape, dtype=dtype, device=device)
    piece = _unused.take(size)
    array = (ctypes.c_char * size).from_address(piece.data_ptr())
    weakref.finalize(array, _unused.put, piece).atexit = False
    return torch.frombuffer(array, dtype=dtype).view(shape)


def zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Do what `torch.zeros` does, from reused memory where that helps."""
    return empty(shape, dtype, device).zero_()
