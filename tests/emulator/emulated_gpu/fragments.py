"""Tensor-core operands: who holds which element, where a matrix lies in shared memory, and the product."""

from __future__ import annotations

import numpy as np

from emulated_gpu.faults import NotEmulated
from emulated_gpu.number_types import Array

_TF32_BITS = np.uint32(0xFFFFE000)


def widened(bits: Array, kind: str) -> Array:
    """uint32 registers to float32 elements, in a new last axis: two halves, low first, or one TF32."""
    if kind == "bf16":
        halves = [(bits << np.uint32(16)), (bits & np.uint32(0xFFFF0000))]
        return np.stack([half.view(np.float32) for half in halves], axis=-1)
    if kind == "f16":
        return bits[..., None].copy().view(np.float16).astype(np.float32)
    if kind == "tf32":
        return (bits & _TF32_BITS).view(np.float32)[..., None]
    raise NotEmulated(kind)


def multiply_add(a: Array, b: Array, c: Array) -> Array:
    """a (..., M, K) @ b (..., K, N) + c, summed exactly and rounded once to float32.

    GPUs align the terms of a few products and cut what lies below, which differs below float32's last place.
    """
    return (a.astype(np.float64) @ b.astype(np.float64) + c).astype(np.float32)


def fragment_a(registers: list[Array], kind: str) -> Array:
    """(warps, 16, K) from four registers.

    Rows g and g + 8, in the first and in the second half of the columns.
    """
    stacked = np.stack(registers).reshape(
        2, 2, -1, 8, 4
    )  # column half, row half, warp, group, lane of the group
    elements = widened(stacked, kind)
    return elements.transpose(2, 1, 3, 0, 4, 5).reshape(stacked.shape[2], 16, -1)


def fragment_b(registers: list[Array], kind: str) -> Array:
    """(warps, K, 8) from two registers."""
    stacked = np.stack(registers).reshape(2, -1, 8, 4)
    elements = widened(stacked, kind)
    return elements.transpose(1, 0, 3, 4, 2).reshape(stacked.shape[1], -1, 8)


def fragment_c(registers: list[Array]) -> Array:
    """(warps, 16, 8 n) from 4 n registers of float32."""
    warps = registers[0].size // 32
    stacked = np.stack(registers).reshape(-1, 2, 2, warps, 8, 4)  # n, row half, column, warp, group, lane
    return stacked.transpose(3, 1, 4, 0, 5, 2).reshape(warps, 16, -1)


def scattered_c(values: Array) -> Array:
    """The inverse of `fragment_c`: (4 n, threads)."""
    warps, _, columns = values.shape
    split = values.reshape(warps, 2, 8, columns // 8, 4, 2)
    return np.ascontiguousarray(split.transpose(3, 1, 5, 0, 2, 4)).reshape(columns // 2, warps * 32)


def descriptor_addresses(descriptors: Array, rows: Array, depth: int, size: int, transposed: bool) -> Array:
    """Byte addresses (warps, rows, depth) of an operand of wgmma in shared memory.

    Layouts are the canonical ones of the PTX manual, "asynchronous warpgroup level matrix".

    Args:
        descriptors: (warps,) uint64.
        rows: (warps, rows) row numbers that a warp reads.
        depth: elements along K.
        size: bytes per element.
        transposed: whether K is the strided direction.
    """
    fields = descriptors.astype(np.int64)
    if ((fields >> 49) & 7).any():
        raise NotEmulated("base offset of a matrix descriptor")
    start, leading, stride = (((fields >> first & 0x3FFF) << 4)[:, None, None] for first in (0, 16, 32))
    modes = np.unique(descriptors.view(np.uint64) >> np.uint64(62))
    if len(modes) != 1:
        raise NotEmulated("several kinds of swizzling in one product")
    width = (16, 128, 64, 32)[int(modes[0])]
    row, column = rows[:, :, None], np.arange(depth)[None, None, :]
    per_row, unit = width // size, 16 // size
    if not transposed:
        inside = column * size if width > 16 else column // unit * leading + column % unit * size
        offset = row // 8 * stride + row % 8 * width + inside
    elif width > 16:
        across = row % per_row * size + row // per_row * leading
        offset = across + column % 8 * width + column // 8 * stride
    else:
        offset = row % unit * size + row // unit * stride + column % 8 * 16 + column // 8 * leading
    address = start + offset
    # Swizzling: the number of a 128-byte line is mixed into the number of the 16-byte unit inside it.
    return address ^ (((address >> 7) & (width // 16 - 1)) << 4)
