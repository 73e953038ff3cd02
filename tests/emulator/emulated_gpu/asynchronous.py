"""Copies and products under way. Each happens as late as its wait allows, so that a missing wait shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from emulated_gpu.faults import Fault, NotEmulated
from emulated_gpu.number_types import Array
from emulated_gpu.tensor import GroupProduct


@dataclass
class Copy:
    """A cp.async between its issue and the wait that completes it.

    Attributes:
        to: shared addresses.
        source: global addresses.
        have: bytes to read, 0 (zeros are written) or `size`.
        size: bytes to write.
        places: halfwords of shared memory that belong to nobody meanwhile.
    """

    to: Array
    source: Array
    have: Array
    size: int
    places: Array


class Copies:
    """The asynchronous copies of one unit, in groups."""

    def __init__(self, unit: Any) -> None:
        self.unit = unit
        self.open: list[Copy] = []
        self.groups: list[list[Copy]] = []

    def start(self, to: Array, source: Array, have: Array, size: int) -> None:
        """Issue a copy; both ends are checked now."""
        shared, memory = self.unit.program.shared, self.unit.program.memory
        places = shared.places(to, size, size)
        shared.writes(places, self.unit)
        shared.copy_under_way[places] = True
        reading = have > 0
        if reading.any():
            if not (have[reading] == size).all():
                raise NotEmulated("copies of a part")
            memory.check(source[reading], size, size)
        self.open.append(Copy(to, source, have, size, places))

    def commit(self) -> None:
        """Close a group."""
        if self.unit.mask is not None:
            raise Fault("cp.async.commit_group in divergent code")
        self.groups.append(self.open)
        self.open = []

    def wait(self, left: int) -> None:
        """Complete all groups but the last `left`."""
        if self.unit.mask is not None:
            raise Fault("cp.async.wait_group in divergent code")
        while len(self.groups) > left:
            for copy in self.groups.pop(0):
                self._complete(copy)

    def _complete(self, copy: Copy) -> None:
        program = self.unit.program
        values = np.zeros((len(copy.to), copy.size // 4), dtype=np.uint32)
        reading = copy.have > 0
        if reading.any():
            values[reading] = program.memory.load(copy.source[reading], 4, copy.size // 4, copy.size)
        program.shared.copy_under_way[copy.places] = False
        program.shared.writes(copy.places, self.unit)
        program.shared.words[4][(copy.to >> 2)[:, None] + np.arange(copy.size // 4)] = values


class Pending:
    """Stands in a register that a product under way will write; using it is a Fault."""

    def __init__(self, value: Array) -> None:
        self.value = value

    def __getattr__(self, name: str) -> Any:
        raise Fault("a register is read before the wait for the product that writes it")


class Products:
    """The wgmma products of one unit, in groups; their registers and operands are guarded until the wait."""

    def __init__(self, unit: Any) -> None:
        self.unit = unit
        self.open: list[GroupProduct] = []
        self.groups: list[list[GroupProduct]] = []

    def start(self, product: GroupProduct) -> None:
        """Issue a product."""
        unit, shared = self.unit, self.unit.program.shared
        product.accumulators = [self._take(target) for target in product.targets]
        product.places = product.operand_places(unit)
        for addresses in product.places:
            halves = np.unique(addresses >> 1)
            if halves[0] < shared.BASE // 2 or halves[-1] >= (shared.BASE + shared.size) // 2:
                raise Fault("wgmma reads outside the kernel's shared memory")
            shared.reads(halves, unit)
            shared.unfenced_reads += int((shared.unfenced[halves] >= 0).any())
            shared.products_under_way[halves] += 1
        self.open.append(product)

    def _take(self, target: int) -> Array:
        """The array of an accumulator, shared by all products that add to it in turn."""
        registers = self.unit.registers
        held = registers[target]
        if isinstance(held, Pending):
            return held.value
        value = np.zeros(self.unit.size, np.uint32) if held is None else held.copy()
        registers[target] = Pending(value)
        return value

    def commit(self) -> None:
        """Close a group."""
        self.groups.append(self.open)
        self.open = []

    def wait(self, left: int) -> None:
        """Execute all groups but the last `left`; their registers may be read again."""
        while len(self.groups) > left:
            for product in self.groups.pop(0):
                product.execute(self.unit)
                for addresses in product.places:
                    self.unit.program.shared.products_under_way[np.unique(addresses >> 1)] -= 1
        under_way = (product for group in (*self.groups, self.open) for product in group)
        waiting = {id(value) for product in under_way for value in product.accumulators}
        for index, held in enumerate(self.unit.registers):
            if isinstance(held, Pending) and id(held.value) not in waiting:
                self.unit.registers[index] = held.value

    @property
    def any(self) -> bool:
        """Whether something is under way."""
        return bool(self.groups or self.open)
