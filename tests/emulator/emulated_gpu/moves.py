"""Moves, selections, comparisons and conversions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from emulated_gpu.number_types import DTYPES, Array, bits_of, from_bf16, to_bf16, to_tf32
from emulated_gpu.operands import Action, Operands
from emulated_gpu.table import instruction

Compare = Callable[[Array, Array], Array]
_ROUNDINGS = {"rmi": np.floor, "rpi": np.ceil, "rni": np.rint, "rzi": np.trunc}
_COMBINATIONS = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def _any_nan(a: Array, b: Array) -> Array:
    return np.isnan(a) | np.isnan(b)


def _ordered(compare: Compare) -> Compare:
    """False where a float is NaN."""
    return lambda a, b: compare(a, b) & ~_any_nan(a, b) if a.dtype.kind == "f" else compare(a, b)


def _unordered(compare: Compare) -> Compare:
    """True where a float is NaN."""
    return lambda a, b: compare(a, b) | _any_nan(a, b)


COMPARISONS: dict[str, Compare] = {
    "eq": np.equal, "ne": _ordered(np.not_equal),
    "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
    "equ": _unordered(np.equal), "neu": np.not_equal,
    "ltu": _unordered(np.less), "leu": _unordered(np.less_equal),
    "gtu": _unordered(np.greater), "geu": _unordered(np.greater_equal),
    "nan": _any_nan, "num": lambda a, b: ~_any_nan(a, b),
}  # fmt: skip


@instruction("selp")
def select(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    return operands.elementwise(texts, [mods[-1], mods[-1], "pred"], lambda a, b, p: np.where(p, a, b))


@instruction("setp")
def set_predicate(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    compare, kind = COMPARISONS[mods[0]], mods[-1]
    if len(mods) > 2 and mods[1] in _COMBINATIONS:
        combine = _COMBINATIONS[mods[1]]
        return operands.elementwise(texts, [kind, kind, "pred"], lambda a, b, c: combine(compare(a, b), c))
    return operands.elementwise(texts, [kind, kind], compare)


@instruction("mov")
def move(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    kind, (target, source) = mods[-1], texts
    if target.startswith("{"):
        return _unpack(operands, kind, operands.vector(target), source)
    if source.startswith("{"):
        return _pack(operands, kind, target, operands.vector(source))
    return operands.elementwise(texts, [kind], lambda a: a)


def _unpack(operands: Operands, kind: str, names: list[str], source: str) -> Action:
    part = f"b{bits_of(kind) // len(names)}"
    read, writers, dtype = operands.read(source, kind), [operands.write(name) for name in names], DTYPES[part]

    def unpack(u: Any) -> None:
        value = np.broadcast_to(read(u), (u.size,)).copy().view(dtype).reshape(u.size, len(names))
        for place, write in enumerate(writers):
            write(u, value[:, place].copy())

    return unpack


def _pack(operands: Operands, kind: str, target: str, names: list[str]) -> Action:
    part = f"b{bits_of(kind) // len(names)}"
    readers, write, dtype = (
        [operands.read(name, part) for name in names],
        operands.write(target),
        DTYPES[kind],
    )

    def pack(u: Any) -> None:
        parts = np.stack([np.broadcast_to(read(u), (u.size,)) for read in readers], axis=1)
        write(u, parts.view(dtype).ravel())

    return pack


@instruction("cvta")
def convert_address(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    return operands.elementwise(texts, [mods[-1]], lambda a: a)


@instruction("cvt")
def convert(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    target, source = mods[-2:]
    if "bf16" in (target, source) or target in ("bf16x2", "f16x2", "tf32"):
        return _convert_short(operands, mods, texts)
    if target[0] == "f" and source[0] == "f":
        return _convert_float(operands, mods, texts)
    if target[0] == "f":
        return operands.elementwise(texts, [source], lambda a: a.astype(DTYPES[target]), "ftz" in mods)
    if source[0] == "f":
        return _float_to_integer(operands, mods, texts)
    return operands.elementwise(texts, [source], lambda a: a.astype(DTYPES[target]))


def _convert_short(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    """To and from bfloat16 and TF32, and two halves into one register."""
    target, source = mods[-2:]
    if target in ("bf16x2", "f16x2") and source == "f32" and "rn" in mods:
        narrow = to_bf16 if target == "bf16x2" else _to_f16_bits
        return operands.elementwise(
            texts,
            ["f32", "f32"],
            lambda high, low: narrow(high).astype(np.uint32) << np.uint32(16) | narrow(low),
        )
    if source == "bf16" and target == "f32":
        return operands.elementwise(texts, ["bf16"], from_bf16)
    if target == "bf16" and source == "f32" and "rn" in mods:
        return operands.elementwise(texts, ["f32"], to_bf16)
    if target == "tf32" and source == "f32" and "rna" in mods:
        return operands.elementwise(texts, ["b32"], to_tf32)
    raise ValueError("kind of cvt")


def _to_f16_bits(values: Array) -> Array:
    return values.astype(np.float16).view(np.uint16)


def _convert_float(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    """To another width, or to a whole number that stays a float."""
    target, source = mods[-2:]
    if mods[0] in _ROUNDINGS:
        return operands.elementwise(texts, [source], _ROUNDINGS[mods[0]], "ftz" in mods)
    if "rn" in mods or bits_of(target) >= bits_of(source):
        return operands.elementwise(texts, [source], lambda a: a.astype(DTYPES[target]), "ftz" in mods)
    raise ValueError("rounding of cvt")


def _float_to_integer(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    target, source = mods[-2:]
    rounding, limits, dtype = _ROUNDINGS[mods[0]], np.iinfo(DTYPES[target]), DTYPES[target]

    def to_integer(value: Array) -> Array:
        # Out of range saturates, and NaN becomes zero.
        whole = np.clip(rounding(value.astype(np.float64)), limits.min, limits.max)
        return np.where(np.isnan(value), 0, whole).astype(dtype)

    return operands.elementwise(texts, [source], to_integer)
