"""Tensor memory of one program (sm_100): 128 lanes of 512 columns of 32 bits, and products into it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from emulated_gpu.faults import Fault, NotEmulated
from emulated_gpu.fragments import descriptor_addresses, multiply_add, widened
from emulated_gpu.number_types import Array, from_bf16

LANES, COLUMNS = 128, 512
_KINDS = {0: "f16", 1: "bf16", 2: "tf32"}


class TensorMemory:
    """What was never written is NaN, and reading it is a fault.

    Attributes:
        columns: allocated columns, which begin at 0; one allocation per program.
        words: (lanes, columns) uint32.
        queue: products and arrivals under way, in the order of their issue.
    """

    def __init__(self, program: Any) -> None:
        self.program = program
        self.columns = 0
        self.words = np.full((LANES, COLUMNS), 0xFFFFFFFF, np.uint32)
        self.written = np.zeros((LANES, COLUMNS), dtype=bool)
        self.under_way = np.zeros((LANES, COLUMNS), dtype=np.int32)
        self.queue: list[Product | Arrival] = []

    def check(self, lanes: Array, columns: Array) -> None:
        """Fault unless all places are allocated."""
        if (lanes < 0).any() or (lanes >= LANES).any() or (columns >= self.columns).any():
            raise Fault(f"tensor memory outside the {self.columns} columns that are allocated")

    def load(self, lanes: Array, columns: Array) -> Array:
        """Words of places that no product is about to write."""
        self.check(lanes, columns)
        if self.under_way[lanes, columns].any():
            raise Fault("tensor memory is read while a product that writes it is under way")
        if not self.written[lanes, columns].all():
            raise Fault("tensor memory is read that was never written")
        return self.words[lanes, columns]

    def store(self, lanes: Array, columns: Array, values: Array) -> None:
        """Write words of places that no product under way reads or writes."""
        self.check(lanes, columns)
        if self.under_way[lanes, columns].any():
            raise Fault("tensor memory is written while a product that uses it is under way")
        self.words[lanes, columns] = values
        self.written[lanes, columns] = True

    def issue(self, product: Product) -> None:
        """Queue a product; what it uses is guarded until it has run."""
        self.check(*product.target)
        self.under_way[product.target] += 1
        if product.left_words is not None:
            self.check(*product.left_words)
            self.under_way[product.left_words] += 1
        self.queue.append(product)

    def run_until(self, barrier: int) -> bool:
        """Run what was issued before the next arrival at a barrier; returns whether there is one."""
        arrival = next(
            (each for each in self.queue if isinstance(each, Arrival) and each.barrier == barrier), None
        )
        while arrival is not None:
            item = self.queue.pop(0)
            if isinstance(item, Product):
                item.run(self)
            else:
                self.program.barriers.arrive(item.barrier)
            if item is arrival:
                return True
        return False


@dataclass
class Arrival:
    """tcgen05.commit: the barrier that hears when all products before it have run."""

    barrier: int


@dataclass(eq=False)
class Product:
    """One tcgen05.mma of M x N x 32 bytes.

    Attributes:
        kind: element type of both operands.
        target: (lanes, columns) of the accumulator, (M, N) each.
        left: byte addresses in shared memory (M, K), or None.
        left_words: (lanes, columns) of the left operand in tensor memory, (M, 8) each, or None.
        right: byte addresses in shared memory (N, K).
        keep: whether the accumulator's former value counts.
        halves: the halfwords of shared memory that it reads.
    """

    kind: str
    target: tuple[Array, Array]
    left: Array | None
    left_words: tuple[Array, Array] | None
    right: Array
    keep: bool
    halves: Array

    def run(self, memory: TensorMemory) -> None:
        """Read the operands as they are now, and write the accumulator."""
        shared = memory.program.shared
        right = self._from_shared(shared, self.right)
        if self.left_words is not None:
            memory.under_way[self.left_words] -= 1
            left = widened(memory.load(*self.left_words), self.kind).reshape(len(self.target[0]), -1)
        else:
            left = self._from_shared(shared, self.left)
        memory.under_way[self.target] -= 1
        before: Any = np.float32(0)
        if self.keep:
            if not memory.written[self.target].all():
                raise Fault("a product adds to tensor memory that was never written")
            before = memory.words[self.target].view(np.float32)
        memory.words[self.target] = multiply_add(left, right.T, before).view(np.uint32)
        memory.written[self.target] = True
        shared.products_under_way[self.halves] -= 1

    def _from_shared(self, shared: Any, addresses: Any) -> Array:
        size = 4 if self.kind == "tf32" else 2
        raw = shared.words[size][addresses // size]
        if self.kind == "f16":
            return raw.view(np.float16).astype(np.float32)
        return from_bf16(raw) if self.kind == "bf16" else widened(raw, "tf32")[..., 0]


def rows_in_lanes(address: int, rows: int) -> tuple[Array, int]:
    """Lanes of the rows of a matrix of 64 or 128 rows, and its first column.

    64 rows take 16 lanes of each warp's 32.
    """
    row = np.arange(rows)
    lanes = (address >> 16) + (row if rows == LANES else row // 16 * 32 + row % 16)
    return lanes, address & 0xFFFF


def product(program: Any, unit: Any, target: int, left: Any, right: int, fields: int, keep: bool) -> Product:
    """Decode a product and guard its operands in shared memory.

    Args:
        program: the program.
        unit: who issues it.
        target: address of the accumulator in tensor memory.
        left: ("shared", matrix descriptor) or ("tensor", address in tensor memory).
        right: matrix descriptor.
        fields: the instruction descriptor, as in the PTX manual: types, transposition, N and M.
        keep: whether the accumulator's former value counts.
    """
    kind, kind_right = _KINDS[fields >> 7 & 7], _KINDS[fields >> 10 & 7]
    if fields >> 4 & 3 != 1 or kind != kind_right or fields & 0xE00F or fields >> 13 & 3:
        raise NotEmulated(f"instruction descriptor {fields:#x} of tcgen05.mma")
    size, rows, columns = 4 if kind == "tf32" else 2, (fields >> 24 & 31) << 4, (fields >> 17 & 63) << 3
    lanes, first = rows_in_lanes(target, rows)
    places = np.broadcast_arrays(lanes[:, None], first + np.arange(columns)[None])

    def in_shared(descriptor: int, count: int, transposed: bool) -> Array:
        if descriptor >> 61 & 1:
            raise NotEmulated("swizzling of 32-byte units")
        numbers = np.arange(count)[None]
        return descriptor_addresses(np.array([descriptor], np.uint64), numbers, 32 // size, size, transposed)[
            0
        ]

    from_shared = left[0] == "shared"
    left_bytes = in_shared(left[1], rows, bool(fields >> 15 & 1)) if from_shared else None
    left_words = None
    if not from_shared:
        left_lanes, left_first = rows_in_lanes(left[1], rows)
        left_words = tuple(np.broadcast_arrays(left_lanes[:, None], left_first + np.arange(8)[None]))
    right_bytes = in_shared(right, columns, bool(fields >> 16 & 1))
    read = [each.ravel() for each in (left_bytes, right_bytes) if each is not None]
    halves = np.unique(np.concatenate([np.concatenate([each, each + size - 2]) for each in read]) >> 1)
    shared = program.shared
    if halves[0] < shared.BASE // 2 or halves[-1] >= (shared.BASE + shared.size) // 2:
        raise Fault("tcgen05.mma reads outside the kernel's shared memory")
    shared.reads(halves, unit)
    shared.unfenced_reads += int((shared.unfenced[halves] >= 0).any())
    shared.products_under_way[halves] += 1
    return Product(kind, (places[0], places[1]), left_bytes, left_words, right_bytes, keep, halves)
