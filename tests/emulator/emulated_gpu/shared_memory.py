"""Shared memory of one program, with a record of who touched what between which barriers."""

from __future__ import annotations

from typing import Any

import numpy as np

from emulated_gpu.faults import Fault
from emulated_gpu.number_types import Array

_WORDS: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_NOBODY = -1
_SEVERAL = -2


class Shared:
    """Bytes that all warps of a program see; the record is kept per two bytes.

    Between two barriers a warp may not read what another one wrote, nor write what another one read or wrote.
    The target of an asynchronous copy under way may not be touched, the operands of a product under way may
    not be written, and what was never written may not be read.

    Attributes:
        unfenced_reads: products that read what was not fenced for the asynchronous proxy; counted, not
            refused, as Triton itself compiles a few.
    """

    # Addresses start here, so that a zero pointer is out of bounds.
    BASE = 1024

    def __init__(self, size: int) -> None:
        self.size = size
        whole = np.full(
            self.BASE + (size + 15) // 16 * 16, 0xFF, dtype=np.uint8
        )  # 0xFFFF is a NaN in every half type
        self.words = {width: whole.view(kind) for width, kind in _WORDS.items()}
        units = len(whole) // 2
        self.writer, self.write_epoch = np.full(units, _NOBODY, np.int32), np.full(units, _NOBODY, np.int32)
        self.reader, self.read_epoch = np.full(units, _NOBODY, np.int32), np.full(units, _NOBODY, np.int32)
        self.copy_under_way = np.zeros(units, dtype=bool)
        self.products_under_way = np.zeros(units, dtype=np.int32)
        self.unfenced = np.full(units, _NOBODY, dtype=np.int32)
        self.unfenced_reads = 0

    def places(self, addresses: Array, size: int, align: int) -> Array:
        """Halfwords (..., size / 2) that accesses touch.

        A Fault where they are misaligned or out of bounds.
        """
        if (addresses % align).any():
            first = int(addresses[addresses % align != 0][0])
            raise Fault(f"shared access of {align} bytes is misaligned: {first}")
        if (addresses < self.BASE).any() or (addresses + size > self.BASE + self.size).any():
            low, high = int(addresses.min()) - self.BASE, int(addresses.max()) - self.BASE
            raise Fault(f"shared access outside the kernel's {self.size} bytes: {low}..{high}")
        return (addresses >> 1)[..., None] + np.arange(max(1, size // 2))

    def reads(self, places: Array, unit: Any) -> None:
        """Record that a unit of warps reads; a Fault where it may not."""
        written = self.write_epoch[places]
        if (written < 0).any():
            raise Fault("shared memory is read that was never written")
        if self.copy_under_way[places].any():
            raise Fault("shared memory is read while an asynchronous copy to it is under way")
        if ((written == unit.epoch) & (self.writer[places] != unit.name)).any():
            raise Fault("race: a warp reads shared memory that another wrote since the last barrier")
        others_too = (self.read_epoch[places] == unit.epoch) & (self.reader[places] != unit.name)
        self.reader[places] = np.where(others_too, _SEVERAL, unit.name)
        self.read_epoch[places] = unit.epoch

    def writes(self, places: Array, unit: Any, values: Array | None = None) -> None:
        """Record that a unit of warps writes; a Fault where it may not.

        Args:
            places: halfwords.
            unit: who writes.
            values: the halfwords, where known. Warps that hold the same part of a tile may write equal
                values.
        """
        if values is not None:
            theirs = (self.write_epoch[places] == unit.epoch) & (self.writer[places] != unit.name)
            if theirs.any():
                if (self.words[2][places[theirs]] != values[theirs]).any():
                    raise Fault(
                        "race: two warps write different values to shared memory without a barrier between"
                    )
                places = places[~theirs]
        if self.copy_under_way[places].any():
            raise Fault("shared memory is written while an asynchronous copy to it is under way")
        if self.products_under_way[places].any():
            raise Fault("race: shared memory is written while a product that reads it is under way")
        if ((self.write_epoch[places] == unit.epoch) & (self.writer[places] != unit.name)).any():
            raise Fault("race: two warps write shared memory without a barrier between them")
        if ((self.read_epoch[places] == unit.epoch) & (self.reader[places] != unit.name)).any():
            raise Fault("race: a warp writes shared memory that another read since the last barrier")
        self.writer[places], self.write_epoch[places] = unit.name, unit.epoch
        self.unfenced[places] = unit.name

    def fence(self, unit: Any) -> None:
        """fence.proxy.async: what this unit wrote may now be read by wgmma."""
        self.unfenced[self.unfenced == unit.name] = _NOBODY

    def load(self, addresses: Array, size: int, count: int, unit: Any) -> Array:
        """(threads, count) words of `size` bytes."""
        self.reads(self.places(addresses, size * count, size * count), unit)
        return self.words[size][(addresses // size)[:, None] + np.arange(count)]

    def store(self, addresses: Array, values: Array, size: int, unit: Any) -> None:
        """Write (threads, count) words of `size` bytes."""
        count = values.shape[1]
        halves = np.ascontiguousarray(values).view(np.uint16).reshape(len(values), -1) if size > 1 else None
        self.writes(self.places(addresses, size * count, size * count), unit, halves)
        self.words[size][(addresses // size)[:, None] + np.arange(count)] = values
