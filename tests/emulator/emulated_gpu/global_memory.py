"""Global memory: the process's own, bounded by the tensors that a kernel was given."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from emulated_gpu.faults import Fault
from emulated_gpu.number_types import Array

_WORDS: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
# Bytes; a larger storage has no map of its elements, and all of it may be accessed.
_LARGEST_MAP = 1 << 28
_NOBODY = -1


def _bytes_at(address: int, size: int) -> Array:
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype=np.uint8)


class Global:
    """The bytes of tensors. Accesses must be aligned and touch elements of a tensor, nothing between them.

    Attributes:
        program: number of the program that is running; it may not read or write what another one wrote.
    """

    def __init__(self, tensors: list[Any]) -> None:
        spans: dict[int, tuple[int, list[Any]]] = {}
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage.nbytes():
                spans.setdefault(storage.data_ptr(), (storage.nbytes(), []))[1].append(tensor)
        order = sorted(spans)
        self.program = _NOBODY
        self.starts = np.array(order, dtype=np.int64)
        self.ends = np.array([start + spans[start][0] for start in order], dtype=np.int64)
        self.base = int(self.starts[0]) & ~255
        whole = _bytes_at(self.base, (int(self.ends[-1]) - self.base + 255) & ~255)
        self.words = {size: whole.view(kind) for size, kind in _WORDS.items()}
        self.maps = [_elements(start, *spans[start]) for start in order]
        self.writers = [np.full(0 if m is None else len(m), _NOBODY, dtype=np.int32) for m in self.maps]

    def load(self, addresses: Array, size: int, count: int, align: int = 0) -> Array:
        """(threads, count) words of `size` bytes."""
        self.check(addresses, size * count, align or size * count)
        return self.words[size][((addresses.view(np.int64) - self.base) // size)[:, None] + np.arange(count)]

    def store(self, addresses: Array, values: Array, size: int) -> None:
        """Write (threads, count) words of `size` bytes."""
        count = values.shape[1]
        self.check(addresses, size * count, size * count, writes=True)
        self.words[size][((addresses.view(np.int64) - self.base) // size)[:, None] + np.arange(count)] = (
            values
        )

    def check(self, addresses: Array, size: int, align: int, writes: bool = False) -> None:
        """Fault unless every thread may access `size` bytes at its address."""
        signed = addresses.view(np.int64)
        misaligned = signed % align != 0
        if misaligned.any():
            raise Fault(f"global access of {align} bytes is misaligned: {int(signed[misaligned][0]):#x}")
        storages = np.searchsorted(self.starts, signed, side="right") - 1
        outside = (storages < 0) | (signed + size > self.ends[storages])
        if outside.any():
            raise Fault(
                f"{int(outside.sum())} threads access global memory outside all tensors, "
                f"the first at {int(signed[outside][0]):#x}"
            )
        for index in np.unique(storages):
            if self.maps[index] is not None:
                halves = (signed[storages == index] - self.starts[index]) >> 1
                self._check_elements(int(index), halves[:, None] + np.arange(max(1, size // 2)), writes)

    def _check_elements(self, index: int, places: Array, writes: bool) -> None:
        is_element = self.maps[index][places]
        if not is_element.all():
            threads = int((~is_element).any(1).sum())
            raise Fault(f"{threads} threads access memory between the elements of a tensor")
        owners = self.writers[index]
        if ((owners[places] != _NOBODY) & (owners[places] != self.program)).any():
            raise Fault(
                "two programs write the same element" if writes else "a program reads what another one wrote"
            )
        if writes:
            owners[places] = self.program


def _elements(start: int, size: int, tensors: list[Any]) -> Any:
    """Per two bytes, whether an element lies there.

    None (all may be accessed) where that map would be enormous.
    """
    if size > _LARGEST_MAP or any(tensor.element_size() < 2 for tensor in tensors):
        return None
    found = np.zeros((size + 1) // 2, dtype=bool)
    for tensor in tensors:
        unit = tensor.element_size() // 2
        places = np.zeros((), dtype=np.int64)
        for length, stride in zip(tensor.shape, tensor.stride()):
            places = places[..., None] + np.arange(length) * (stride * unit)
        places = places + (tensor.data_ptr() - start) // 2
        for part in range(unit):
            found[places.ravel() + part] = True
    return found
