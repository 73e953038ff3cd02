"""Integer and floating-point arithmetic. Floats round to nearest even; a fused multiply-add rounds once."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from emulated_gpu.number_types import DTYPES, Array, bits_of, half_to_float32
from emulated_gpu.operands import Action, Operands
from emulated_gpu.table import instruction


def _is_mixed(mods: list[str]) -> bool:
    """add.f32.bf16: a half-precision operand and a float32 one."""
    return mods[-2:-1] == ["f32"]


@instruction("add")
def add(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    if _is_mixed(mods):
        return operands.elementwise(texts, [mods[-1], "f32"], lambda a, b: half_to_float32(a) + b)
    return operands.arithmetic(mods, texts, np.add)


@instruction("sub")
def subtract(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    if _is_mixed(mods):
        return operands.elementwise(texts, [mods[-1], "f32"], lambda a, b: half_to_float32(a) - b)
    return operands.arithmetic(mods, texts, np.subtract)


@instruction("neg")
def negate(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    return operands.arithmetic(mods, texts, np.negative)


@instruction("abs")
def absolute(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    return operands.arithmetic(mods, texts, np.abs)


@instruction("min")
def minimum(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    return _extreme(operands, mods, texts, np.minimum, np.fmin)


@instruction("max")
def maximum(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    return _extreme(operands, mods, texts, np.maximum, np.fmax)


def _extreme(
    operands: Operands,
    mods: list[str],
    texts: list[str],
    spreading: Callable[..., Array],
    ignoring: Callable[..., Array],
) -> Action:
    """Of two or three values. Floats ignore NaN unless the modifier says .NaN."""
    function = spreading if "NaN" in mods or mods[-1][0] != "f" else ignoring
    return operands.arithmetic(mods, texts, lambda *values: functools.reduce(function, values))


@instruction("mul")
def multiply(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    kind = mods[-1]
    if kind[0] == "f" or "lo" in mods:
        return operands.arithmetic(mods, texts, np.multiply)
    wide = DTYPES[kind[0] + str(2 * bits_of(kind))]
    if "wide" in mods:
        return operands.elementwise(texts, [kind, kind], lambda a, b: a.astype(wide) * b.astype(wide))
    if "hi" in mods and bits_of(kind) == 32:
        narrow = DTYPES[kind]
        return operands.elementwise(
            texts, [kind, kind], lambda a, b: ((a.astype(wide) * b.astype(wide)) >> 32).astype(narrow)
        )
    raise ValueError("kind of mul")


@instruction("mad")
def multiply_add_integers(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    kind = mods[-1]
    if "lo" in mods:
        return operands.arithmetic(mods, texts, lambda a, b, c: a * b + c)
    if "wide" not in mods:
        raise ValueError("kind of mad")
    wide = kind[0] + str(2 * bits_of(kind))
    dtype = DTYPES[wide]
    return operands.elementwise(
        texts, [kind, kind, wide], lambda a, b, c: a.astype(dtype) * b.astype(dtype) + c
    )


@instruction("fma")
def fused_multiply_add(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    if _is_mixed(mods):
        return operands.elementwise(
            texts,
            [mods[-1], mods[-1], "f32"],
            lambda a, b, c: _fused(half_to_float32(a), half_to_float32(b), c),
        )
    if mods[-1] not in ("f32", "f32x2"):
        raise ValueError("kind of fma")
    return operands.arithmetic(mods, texts, _fused)


def _fused(a: Array, b: Array, c: Array) -> Array:
    """a * b + c, rounded once."""
    product, addend = a.astype(np.float64) * b, c.astype(np.float64)  # the product of float32 is exact
    total = product + addend
    # Rounding to float64 first would round twice. The last bit of an inexact sum is made odd instead (towards
    # what was lost), from where rounding to float32 is right (Boldo and Melquiond, 2008).
    added = total - product
    lost = (product - (total - added)) + (addend - added)
    is_even = np.ascontiguousarray(total).view(np.int64) & 1 == 0
    odd = np.nextafter(total, np.where(lost > 0, np.inf, -np.inf))
    return np.where(np.isfinite(total) & (lost != 0) & is_even, odd, total).astype(np.float32)


@instruction("div")
def divide(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    if mods[-1][0] == "f":
        return operands.arithmetic(mods, texts, np.divide)
    return operands.arithmetic(mods, texts, lambda a, b: _quotient(a, b)[0])


@instruction("rem")
def remainder(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    return operands.arithmetic(mods, texts, lambda a, b: _quotient(a, b)[1])


def _quotient(a: Array, b: Array) -> tuple[Array, Array]:
    """C's division, rounded towards zero, and its remainder; a quotient by zero is all ones."""
    safe = np.where(b == 0, b.dtype.type(1), b)
    quotient = a // safe
    if a.dtype.kind == "i":
        rounded_down = (a - quotient * safe != 0) & ((a < 0) != (b < 0))
        quotient = np.where(rounded_down, quotient + a.dtype.type(1), quotient)
    quotient = np.where(b == 0, ~a.dtype.type(0), quotient).astype(a.dtype)
    return quotient, (a - quotient * b).astype(a.dtype)


@instruction("ex2")
def exponential(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    return operands.arithmetic(mods, texts, lambda a: np.exp2(a.astype(np.float64)).astype(np.float32))


@instruction("lg2")
def logarithm(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    return operands.arithmetic(mods, texts, lambda a: np.log2(a.astype(np.float64)).astype(np.float32))


@instruction("rcp")
def reciprocal(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    return operands.arithmetic(mods, texts, lambda a: np.float32(1) / a)


@instruction("sqrt")
def square_root(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    return operands.arithmetic(mods, texts, np.sqrt)


@instruction("rsqrt")
def inverse_square_root(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    return operands.arithmetic(mods, texts, lambda a: (1 / np.sqrt(a.astype(np.float64))).astype(np.float32))
