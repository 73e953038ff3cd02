"""Logic, shifts, bit fields and permutations of bytes."""

from __future__ import annotations

import numpy as np

from emulated_gpu.faults import Fault
from emulated_gpu.number_types import DTYPES, Array, bits_of
from emulated_gpu.operands import Action, Operands
from emulated_gpu.table import instruction


@instruction("and")
def bitwise_and(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    return operands.arithmetic(mods, texts, np.bitwise_and)


@instruction("or")
def bitwise_or(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    return operands.arithmetic(mods, texts, np.bitwise_or)


@instruction("xor")
def bitwise_xor(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    return operands.arithmetic(mods, texts, np.bitwise_xor)


@instruction("not")
def bitwise_not(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    return operands.arithmetic(mods, texts, np.invert)


@instruction("popc")
def count_ones(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    def ones(value: Array) -> Array:
        # np.bitwise_count needs NumPy 2.
        bits = np.unpackbits(np.ascontiguousarray(value).view(np.uint8))
        return bits.reshape(value.size, -1).sum(axis=1).astype(np.uint32).reshape(value.shape)

    return operands.elementwise(texts, [mods[-1]], ones)


@instruction("shl")
def shift_left(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    bits = bits_of(mods[-1])

    def shift(value: Array, by: Array) -> Array:
        # Past the width the result is zero; NumPy's is undefined there.
        shifted = value << np.minimum(by, bits - 1).astype(value.dtype)
        return np.where(by < bits, shifted, value.dtype.type(0))

    return operands.elementwise(texts, [mods[-1], "u32"], shift)


@instruction("shr")
def shift_right(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    kind, bits = mods[-1], bits_of(mods[-1])

    def shift(value: Array, by: Array) -> Array:
        shifted = value >> np.minimum(by, bits - 1).astype(value.dtype)
        return shifted if kind[0] == "s" else np.where(by < bits, shifted, value.dtype.type(0))

    return operands.elementwise(texts, [kind, "u32"], shift)


@instruction("shf")
def funnel_shift(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    left = mods[0] == "l"

    def shift(low: Array, high: Array, by: Array) -> Array:
        count = (by & np.uint32(31) if "wrap" in mods else np.minimum(by, np.uint32(32))).astype(np.uint64)
        both = low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)
        return ((both << count) >> np.uint64(32) if left else both >> count).astype(np.uint32)

    return operands.elementwise(texts, ["b32", "b32", "u32"], shift)


@instruction("bfe")
def extract_bit_field(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    kind, bits = mods[-1], bits_of(mods[-1])

    def extract(value: Array, position: Array, length: Array) -> Array:
        first = (position & np.uint32(255)).astype(np.int64)
        width = (length & np.uint32(255)).astype(np.int64)
        if (first + width > bits).any():
            raise Fault("bit field past the register")
        field = (value.astype(np.int64) >> first) & ((np.int64(1) << width) - 1)
        if kind[0] == "s":
            negative = (width > 0) & ((field >> np.maximum(width - 1, 0)) & 1 == 1)
            field = np.where(negative, field - (np.int64(1) << width), field)
        return field.astype(DTYPES[kind])

    return operands.elementwise(texts, [kind, "u32", "u32"], extract)


@instruction("prmt")
def permute_bytes(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    def permute(a: Array, b: Array, selector: Array) -> Array:
        both = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
        out = np.zeros(np.broadcast_shapes(a.shape, b.shape, selector.shape), dtype=np.uint64)
        for place in range(4):
            chosen = (selector >> np.uint32(4 * place)) & np.uint32(15)
            byte = (both >> ((chosen & np.uint32(7)).astype(np.uint64) * np.uint64(8))) & np.uint64(255)
            # Bit 3 of a selector spreads the sign of the byte.
            sign = np.where(byte & np.uint64(128), np.uint64(255), np.uint64(0))
            byte = np.where(chosen & np.uint32(8), sign, byte)
            out |= byte << np.uint64(8 * place)
        return out.astype(np.uint32)

    return operands.elementwise(texts, ["b32", "b32", "b32"], permute)
