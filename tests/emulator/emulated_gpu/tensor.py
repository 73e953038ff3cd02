"""Tensor-core instructions: ldmatrix, stmatrix, mma and wgmma."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from emulated_gpu.faults import Fault
from emulated_gpu.fragments import (
    descriptor_addresses,
    fragment_a,
    fragment_b,
    fragment_c,
    multiply_add,
    scattered_c,
    widened,
)
from emulated_gpu.number_types import Array, from_bf16
from emulated_gpu.operands import Action, Operands, Writer
from emulated_gpu.table import instruction

_SHAPES = {"tf32": "m16n8k8", "bf16": "m16n8k16", "f16": "m16n8k16"}


def _matrix_rows(u: Any, addresses: Array, count: int) -> Array:
    """(warps, 8 count) addresses of rows; lanes 8 i .. 8 i + 7 hold those of matrix i."""
    if u.mask is not None:
        raise Fault("ldmatrix or stmatrix in divergent code")
    return addresses.reshape(u.size // 32, 32)[:, : 8 * count]


def _check_matrix(mods: list[str]) -> None:
    if "m8n8" not in mods or mods[-1] != "b16":
        raise ValueError("kind of ldmatrix or stmatrix")


@instruction("ldmatrix")
def load_matrices(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    _check_matrix(mods)
    writers = [operands.write(name) for name in operands.vector(texts[0])]
    address, count = operands.address(texts[1], "shared"), len(writers)

    def execute(u: Any) -> None:
        shared, rows = u.program.shared, _matrix_rows(u, address(u), count)
        shared.reads(shared.places(rows, 16, 16), u)
        found = shared.words[2][(rows >> 1)[..., None] + np.arange(8)].reshape(-1, count, 8, 8)
        if "trans" in mods:
            found = found.swapaxes(-1, -2)
        pairs = np.ascontiguousarray(found).view(np.uint32).reshape(-1, count, 32)
        for place, write in enumerate(writers):
            write(u, np.ascontiguousarray(pairs[:, place]).ravel())

    return execute


@instruction("stmatrix")
def store_matrices(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    _check_matrix(mods)
    address = operands.address(texts[0], "shared")
    readers = [operands.read(name, "b32") for name in operands.vector(texts[1])]
    count = len(readers)

    def execute(u: Any) -> None:
        shared, rows = u.program.shared, _matrix_rows(u, address(u), count)
        warps = u.size // 32
        values = np.stack(
            [np.broadcast_to(read(u), (u.size,)).reshape(warps, 32) for read in readers], axis=1
        )
        stored = values.view(np.uint16).reshape(warps, count, 8, 8)
        if "trans" in mods:
            stored = stored.swapaxes(-1, -2)
        stored = stored.reshape(warps, 8 * count, 8)
        shared.writes(shared.places(rows, 16, 16), u, stored)
        shared.words[2][(rows >> 1)[..., None] + np.arange(8)] = stored

    return execute


@instruction("mma")
def warp_product(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    shape, (kind_d, kind_a, kind_b, kind_c) = mods[2], mods[-4:]
    if kind_d != "f32" or kind_c != "f32" or kind_a != kind_b or mods[3:5] != ["row", "col"]:
        raise ValueError("kind of mma")
    if shape != _SHAPES[kind_a]:
        raise ValueError(f"mma of {shape}")
    groups = [operands.vector(text) for text in texts]
    writers: list[Writer] = [operands.write(name) for name in groups[0]]
    a, b, c = (
        [operands.read(name, kind) for name in group]
        for group, kind in zip(groups[1:], ("b32", "b32", "f32"))
    )

    def execute(u: Any) -> None:
        if u.mask is not None:
            raise Fault("mma in divergent code")
        left, right, before = (
            [np.broadcast_to(read(u), (u.size,)) for read in readers] for readers in (a, b, c)
        )
        product = multiply_add(fragment_a(left, kind_a), fragment_b(right, kind_a), fragment_c(before))
        for write, value in zip(writers, scattered_c(product)):
            write(u, value)

    return execute


@dataclass
class GroupProduct:
    """One wgmma between its issue and its execution; every warp computes 16 rows.

    Attributes:
        shape: such as "m64n64k16".
        kind: element type of both operands.
        targets: numbers of the registers that it adds to.
        left: four registers per thread, or matrix descriptors (uint64 per thread).
        right: matrix descriptors.
        keep: (threads,) whether the registers' former values count.
        transpose_left, transpose_right: whether an operand's K is the strided direction in shared memory.
        accumulators: the registers' arrays, written at execution.
        places: byte addresses of what it reads in shared memory, per operand.
    """

    shape: str
    kind: str
    targets: list[int]
    left: Any
    right: Array
    keep: Array
    transpose_left: bool
    transpose_right: bool
    accumulators: list[Array] = field(default_factory=list)
    places: list[Array] = field(default_factory=list)

    @property
    def element_size(self) -> int:
        return 4 if self.kind == "tf32" else 2

    def operand_places(self, u: Any) -> list[Array]:
        """Byte addresses of each operand in shared memory: (warps, rows, K)."""
        size = self.element_size
        columns = re.fullmatch(r"m64n(\d+)k\d+", self.shape)
        assert columns is not None, self.shape
        depth, warps = 32 // size, u.thread_ids[::32] // 32
        found = []
        if not isinstance(self.left, list):
            rows = ((warps % 4)[:, None] * 16 + np.arange(16)).astype(np.int64)
            found.append(descriptor_addresses(self.left[::32], rows, depth, size, self.transpose_left))
        rows = np.broadcast_to(np.arange(int(columns[1])), (len(warps), int(columns[1])))
        found.append(descriptor_addresses(self.right[::32], rows, depth, size, self.transpose_right))
        return found

    def execute(self, u: Any) -> None:
        """Read shared memory as it is now, and add to the accumulators."""
        matrices = [self._matrix(u, addresses) for addresses in self.places]
        if isinstance(self.left, list):
            matrices.insert(0, fragment_a(self.left, self.kind))
        before = fragment_c([part.view(np.float32) for part in self.accumulators])
        before = np.where(self.keep[::32, None, None], before, np.float32(0))
        product = multiply_add(matrices[0], matrices[1].swapaxes(-1, -2), before)
        for place, value in enumerate(scattered_c(product)):
            self.accumulators[place][:] = value.view(np.uint32)

    def _matrix(self, u: Any, addresses: Array) -> Array:
        raw = u.program.shared.words[self.element_size][addresses // self.element_size]
        if self.kind == "f16":
            return raw.view(np.float16).astype(np.float32)
        return from_bf16(raw) if self.kind == "bf16" else widened(raw, "tf32")[..., 0]


@instruction("wgmma")
def group_product(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    if mods[0] == "fence":
        return lambda u: None
    if mods[0] == "commit_group":
        return lambda u: u.products.commit()
    if mods[0] == "wait_group":
        left_over = int(texts[0], 0)
        return lambda u: u.products.wait(left_over)
    shape, (kind_d, kind_a, kind_b) = mods[3], mods[-3:]
    if mods[0] != "mma_async" or kind_d != "f32" or kind_a != kind_b:
        raise ValueError("kind of wgmma")
    targets = [operands.number(name) for name in operands.vector(texts[0])]
    registers = (
        [operands.read(name, "b32") for name in operands.vector(texts[1])] if texts[1][0] == "{" else None
    )
    descriptors = None if registers else operands.read(texts[1], "u64")
    right, keep = operands.read(texts[2], "u64"), operands.read(texts[3], "pred")
    signs, transposed = [int(text) for text in texts[4:6]], [bool(int(text)) for text in texts[6:]]
    if signs != [1, 1]:
        raise ValueError("negated operands of wgmma")
    transpose_right = transposed[-1] if transposed else False
    transpose_left = transposed[0] if len(transposed) == 2 else False

    def execute(u: Any) -> None:
        if u.mask is not None:
            raise Fault("wgmma in divergent code")
        left: Any = [read(u) for read in registers] if registers else descriptors(u)  # type: ignore[misc]
        keeps = np.broadcast_to(keep(u), (u.size,))
        u.products.start(
            GroupProduct(shape, kind_a, targets, left, right(u), keeps, transpose_left, transpose_right)
        )

    return execute
