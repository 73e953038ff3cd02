"""PTX types as NumPy types, and roundings that NumPy lacks.

Registers hold bits: arrays of uint16, uint32 or uint64 with one entry per thread, bool for predicates. An
instruction reads them as the type in its name.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

DTYPES: dict[str, Any] = {
    "pred": np.bool_,
    "b8": np.uint8, "u8": np.uint8, "s8": np.int8,
    "b16": np.uint16, "u16": np.uint16, "s16": np.int16, "f16": np.float16, "bf16": np.uint16,
    "b32": np.uint32, "u32": np.uint32, "s32": np.int32, "f32": np.float32, "tf32": np.uint32,
    "f16x2": np.uint32, "bf16x2": np.uint32,
    "b64": np.uint64, "u64": np.uint64, "s64": np.int64, "f64": np.float64, "f32x2": np.float32,
}  # fmt: skip
UNSIGNED: dict[int, Any] = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
_SMALLEST_NORMAL = np.float32(2.0**-126)


def bits_of(kind: str) -> int:
    """Width of a PTX type."""
    if kind in ("pred", "f32x2"):
        return {"pred": 1, "f32x2": 64}[kind]
    return int(np.dtype(DTYPES[kind]).itemsize) * 8


def to_bf16(values: Array) -> Array:
    """float32 to the bits of bfloat16, rounded to nearest even."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint32(0x7FFF), rounded).astype(np.uint16)


def from_bf16(bits: Array) -> Array:
    """The bits of bfloat16 (uint16) to float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def half_to_float32(values: Array) -> Array:
    """float16 values, or the bits of bfloat16, to float32."""
    return values.astype(np.float32) if values.dtype == np.float16 else from_bf16(values)


def to_tf32(bits: Array) -> Array:
    """The bits of float32 rounded to 10 bits of mantissa: to nearest, ties away from zero (cvt.rna.tf32)."""
    return (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)


def flush_subnormals(values: Array) -> Array:
    """Subnormal float32 become zeros of their sign (the modifier .ftz)."""
    return np.where(np.abs(values) < _SMALLEST_NORMAL, np.copysign(np.float32(0), values), values)
