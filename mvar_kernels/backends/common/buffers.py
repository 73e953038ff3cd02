"""Memory of large results on a CPU, handed out again once nobody holds the result any more.

PyTorch leaves host memory to malloc. glibc keeps what is freed up to 32 MiB a piece; more than that it maps anew for every call, and then each page
of a result is a fault: 8,193 of them, and 10 of 80 ms, for the 32 MiB that a 128 x 128 grid gives with 8 heads of 64. So such a grid took 4.0 to 4.8
times as long as 64 x 64; with this it takes 3.6 to 4.4 times as long.

A result is a tensor over a ctypes array over the memory. PyTorch holds that array for as long as any tensor, view or graph uses the storage; when it
dies, the memory is free again. Nothing has to be given back by hand, and nobody can be handed memory that is in use. As all tensors over foreign
memory, such results cannot be enlarged by `resize_`.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

# Smaller results malloc recycles itself: out, dq, dk and dv together stay below the 64 MiB from which on glibc gives freed memory back. The 1024 px
# pyramid, 18.5 MiB each, took 140 instead of 149 ms with backward, 0 instead of 3,300 to 9,400 faults a call.
_LEAST_BYTES = 16 << 20
# Kept while unused, by all threads together: out, dq, dk and dv of the grid above. The oldest is let go first.
_KEPT_BYTES = 128 << 20


class _Unused:
    """Memory that nobody holds, oldest first.

    No lock: collecting garbage can give memory back in the middle of any line, of the same thread too. Every step is one operation of a dict, and
    whoever pops a piece owns it.
    """

    def __init__(self) -> None:
        self.pieces: dict[tuple[int, int], Tensor] = {}  # by (bytes, a number)
        self._numbers = itertools.count()

    def take(self, size: int) -> Tensor:
        """(size,) uint8."""
        for key in list(self.pieces):
            piece = self.pieces.pop(key, None) if key[0] == size else None
            if piece is not None:
                return piece
        return torch.empty(size, dtype=torch.uint8)

    def put(self, piece: Tensor) -> None:
        self.pieces[len(piece), next(self._numbers)] = piece
        held = list(self.pieces)
        too_much = sum(size for size, _ in held) - _KEPT_BYTES
        for key in held:
            if too_much > 0:
                self.pieces.pop(key, None)
                too_much -= key[0]


_unused = _Unused()


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """As `torch.empty`."""
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or not _LEAST_BYTES <= size <= _KEPT_BYTES:
        return torch.empty(shape, dtype=dtype, device=device)
    piece = _unused.take(size)
    array = (ctypes.c_char * size).from_address(piece.data_ptr())
    weakref.finalize(array, _unused.put, piece).atexit = False
    return torch.frombuffer(array, dtype=dtype).view(shape)


def zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """As `torch.zeros`."""
    return empty(shape, dtype, device).zero_()
