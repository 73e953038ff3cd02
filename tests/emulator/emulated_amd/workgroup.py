"""A workgroup: registers, local memory, and which lanes are where."""

from __future__ import annotations

from typing import Any

import numpy as np
from emulated_gpu.faults import Fault
from emulated_gpu.global_memory import Global

from emulated_amd.parse import Block, Code, Phi, shape
from emulated_amd.values import BITS, DTYPES, LOCAL_BASE, Array, element


class Workgroup:
    """All lanes of a program, in lockstep. Where lanes part, those at the lowest block go first.

    Attributes:
        lanes: number of each lane.
        mask: (size,) which are active; None is all.
        registers: values by name.
        products: exact products by name, for contraction.
        product: the exact product of the instruction that runs.
    """

    def __init__(
        self, code: Code, number: int, arguments: list[Any], size: int, memory: Global, local: int
    ) -> None:
        self.code, self.number, self.size, self.memory = code, number, size, memory
        self.lanes = np.arange(size, dtype=np.int32)
        self.registers: dict[str, Array] = {
            name: np.array([value]).astype(DTYPES[kind])
            for (kind, name), value in zip(code.arguments, arguments)
        }
        self.products: dict[str, Array] = {}
        self.product: Array | None = None
        self.local, self.written = np.full(local, 0xFF, np.uint8), np.zeros(local, dtype=bool)
        self.mask: Array | None = None
        self.block = 0
        self.blocks, self.before = np.zeros(size, np.int64), np.full(size, -1)

    def spread(self, values: Array) -> Array:
        """One row per lane."""
        return np.broadcast_to(values, (self.size, *values.shape[1:]))

    def run(self) -> None:
        """Execute to the end."""
        while True:
            block = self.code.blocks[self.block]
            self._merge(block.phis)
            for line, target, evaluate in block.body:
                self.product = None
                try:
                    value = evaluate(self)
                except Exception as error:
                    raise Fault(
                        f"workgroup {self.number}, {line}: {type(error).__name__}: {error}"
                    ) from error
                if target is not None:
                    self._write(target, value)
            if block.branch is None:
                if self.mask is not None:
                    raise Fault("some lanes return while others go on")
                return
            self._go(block)

    def _write(self, name: str, value: Array) -> None:
        self.products.pop(name, None)
        if self.product is not None:
            self.products[name] = self.product
        if self.mask is not None:
            value = self.spread(value)
            old = self.registers.get(name, np.zeros(1, value.dtype) if value.ndim == 1 else value[:1] * 0)
            chosen = self.mask if value.ndim == 1 else self.mask[:, None]
            value = np.where(chosen, value, self.spread(old))
        self.registers[name] = value

    def _merge(self, phis: list[Phi]) -> None:
        """All phis of a block read before one is written."""
        values = []
        for name, kind, sources in phis:
            value = np.zeros(shape(kind, self.size), DTYPES[element(kind)[0]])
            for read, label in sources:
                from_there = self.before == self.code.labels[label]
                if self.mask is not None:
                    from_there = from_there & self.mask
                if from_there.any():
                    value[from_there] = self.spread(read(self))[from_there]
            values.append((name, value))
        self.product = None
        for name, value in values:
            self._write(name, value)

    def _go(self, block: Block) -> None:
        assert block.branch is not None
        condition, yes, no = block.branch
        active = np.ones(self.size, dtype=bool) if self.mask is None else self.mask
        there = np.where(self.spread(condition(self)), self.code.labels[yes], self.code.labels[no])
        self.before = np.where(active, self.block, self.before)
        self.blocks = np.where(active, there, self.blocks)
        self.block = int(self.blocks.min())
        mask = self.blocks == self.block
        self.mask = None if mask.all() else mask

    def _local_places(self, addresses: Array, size: int) -> Array:
        places = addresses[:, None] - LOCAL_BASE + np.arange(size)
        if (places < 0).any() or (places >= len(self.local)).any():
            raise Fault(f"local memory outside the kernel's {len(self.local)} bytes")
        return places

    def load(self, space: str, addresses: Array, kind: str, count: int, mask: Array | None) -> Array:
        """Elements at the active lanes' addresses, zeros elsewhere."""
        size, several = BITS[kind] // 8, max(1, count)
        active = np.ones(self.size, dtype=bool) if mask is None else mask
        found = np.zeros((self.size, several), DTYPES[kind])
        if active.any():
            where = self.spread(addresses)[active]
            if space == "global":
                raw = self.memory.load(where.view(np.uint64), size, several, size)
            else:
                places = self._local_places(where, size * several)
                if not self.written[places].all():
                    raise Fault("local memory is read that was never written")
                raw = self.local[places]
            found[active] = np.ascontiguousarray(raw).view(DTYPES[kind])
        return found if count else found[:, 0]

    def store(
        self, space: str, addresses: Array, values: Array, kind: str, count: int, mask: Array | None
    ) -> None:
        """Write elements of active lanes."""
        size = BITS[kind] // 8
        active = np.ones(self.size, dtype=bool) if mask is None else mask
        if not active.any():
            return
        values = self.spread(values)
        where, rows = (
            self.spread(addresses)[active],
            (values if count else values[:, None])[active],
        )
        raw = np.ascontiguousarray(rows).view(f"u{size}")
        if space == "global":
            self.memory.store(where.view(np.uint64), raw, size)
        else:
            places = self._local_places(where, raw.shape[1] * size)
            self.local[places] = raw.view(np.uint8)
            self.written[places] = True
