"""Types of LLVM IR as NumPy's, and operands: one value per lane, or one for all."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray
Reader = Callable[[Any], Array]


class _Types(dict):  # type: ignore[type-arg]
    """Integers of odd widths, such as i13, are held as nonnegative i32."""

    def __missing__(self, name: str) -> Any:
        if not re.fullmatch(r"i\d+", name):
            raise KeyError(name)
        return np.int32


# A vector is (lanes, elements); bfloat16 is held as its bits, pointers as integers.
DTYPES: dict[str, Any] = _Types({
    "i1": np.bool_, "i8": np.int8, "i16": np.int16, "i32": np.int32, "i64": np.int64,
    "float": np.float32, "half": np.float16, "bfloat": np.uint16,
    "ptr addrspace(1)": np.int64, "ptr addrspace(3)": np.int64, "ptr addrspace(8)": np.int64,
})  # fmt: skip
BITS = {"i1": 1, "i8": 8, "i16": 16, "i32": 32, "i64": 64, "float": 32, "half": 16, "bfloat": 16}
UNSIGNED: dict[int, Any] = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
TYPE = r"(?:<\d+ x [a-z0-9]+>|ptr addrspace\(\d\)|i\d+|float|half|bfloat)"
# Where local memory begins, so that a zero pointer is out of bounds.
LOCAL_BASE = 4096
_UNSET = ("zeroinitializer", "poison", "undef", "null")


def element(kind: str) -> tuple[str, int]:
    """(type of an element, elements): 0 elements for what is no vector."""
    match = re.fullmatch(r"<(\d+) x (.+)>", kind)
    return (match[2], int(match[1])) if match else (kind, 0)


def from_bf16(bits: Array) -> Array:
    """Bits of bfloat16 as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_bf16(values: Array) -> Array:
    """float32 to the bits of the nearest bfloat16, ties to even."""
    bits = values.view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FFF), rounded)


def split(text: str) -> list[str]:
    """The parts between commas that stand in no bracket."""
    parts, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter in "(<[") - (letter in ")>]")
        if letter == "," and depth == 0:
            parts.append(text[start:place].strip())
            start = place + 1
    return [*parts, text[start:].strip()] if text.strip() else []


def constant(kind: str, text: str) -> Array:
    """A literal, for all lanes: (1,) or (1, elements). What is not set is NaN, or zero."""
    name, count = element(kind)
    if text in _UNSET:
        missing = np.nan if text in ("poison", "undef") and name in ("float", "half") else 0
        return np.full((1, count) if count else 1, missing, DTYPES[name])
    if match := re.fullmatch(r"splat \(\S+ (.+)\)", text):
        return np.repeat(constant(name, match[1])[:, None], count, 1)
    if count:
        return np.stack([constant(*part.rsplit(" ", 1)) for part in split(text[1:-1])], axis=1)
    if name == "i1":
        return np.array([text == "true"])
    if text.startswith(("0xR", "0xH")):
        return np.array([int(text[3:], 16)], np.uint16).view(DTYPES[name])
    if name in ("float", "half", "bfloat"):
        wide = (
            np.array([int(text, 16)], np.uint64).view(np.float64)
            if text[:2] == "0x"
            else np.array([float(text)])
        )
        return to_bf16(wide.astype(np.float32)) if name == "bfloat" else wide.astype(DTYPES[name])
    if match := re.fullmatch(r"(?:getelementptr .*)?@global_smem(?:, i32 (\d+)\))?", text):
        return np.array([LOCAL_BASE + int(match[1] or 0)])
    return np.array([int(text)]).astype(DTYPES[name])


def reader(kind: str, text: str) -> Reader:
    """A function from a workgroup to an operand's values."""
    if text.startswith("%"):
        name = text[1:]
        return lambda group: group.registers[name]
    value = constant(kind, text)
    return lambda group: value


def typed(text: str) -> tuple[str, Reader]:
    """ "i32 %5" -> its type and reader."""
    match = re.match(rf"(?:noundef )?({TYPE}) (?:noundef )?(.+)$", text)
    if match is None:
        raise ValueError(f"not an operand: {text!r}")
    return match[1], reader(match[1], match[2].strip())
