"""Loads and stores of global and local memory, and buffers."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from emulated_gpu.faults import NotEmulated

from emulated_amd.table import Evaluate, instruction, intrinsic
from emulated_amd.values import BITS, Array, Reader, element, split, typed

# Bytes that the buffers of these kernels hold; beyond them zeros are loaded, and nothing is stored.
_BUFFER = 2**31 - 2


def _space(kind: str) -> str:
    return {"1": "global", "3": "local"}[kind[-2]]


@instruction("getelementptr")
def address(opcode: str, text: str) -> Evaluate:
    unit, pointer, index = split(text)
    (_, base), (_, offset), size = typed(pointer), typed(index), BITS[unit] // 8
    return lambda group: base(group) + offset(group).astype(np.int64) * size


@instruction("load")
def load(opcode: str, text: str) -> Evaluate:
    kind, pointer = split(text)[:2]
    where, addresses = typed(pointer)
    return lambda group: group.load(_space(where), addresses(group), *element(kind), group.mask)


@instruction("store")
def store(opcode: str, text: str) -> Evaluate:
    (kind, values), (where, addresses) = map(typed, split(text)[:2])
    return lambda group: group.store(
        _space(where), addresses(group), values(group), *element(kind), group.mask
    )


@intrinsic("make.buffer.rsrc")
def buffer(operands: list[Reader], name: str) -> Evaluate:
    """A buffer is its address, as all have one size."""

    def evaluate(group: Any) -> Array:
        if int(operands[2](group)[0]) != _BUFFER:
            raise NotEmulated("size of a buffer")
        return operands[0](group)

    return evaluate


def _suffix(name: str) -> tuple[str, int]:
    """ "raw.ptr.buffer.load.v2i32" -> ("i32", 2)."""
    match = re.fullmatch(r"(?:v(\d+))?([a-z]+\d+)", name.rsplit(".", 1)[1])
    if match is None:
        raise ValueError("type of a buffer access")
    kinds = {"f32": "float", "f16": "half", "bf16": "bfloat"}
    return kinds.get(match[2], match[2]), int(match[1] or 0)


def _inside(group: Any, operands: list[Reader], size: int) -> tuple[Array, Array]:
    """(addresses, which lanes access memory): inactive ones and offsets past the buffer do not."""
    base, offset, more = (group.spread(operand(group)) for operand in operands)
    start = offset.view(np.uint32).astype(np.int64) + more
    inside = start + size <= _BUFFER
    return base + start, inside if group.mask is None else inside & group.mask


@intrinsic("raw.ptr.buffer.load")
def buffer_load(operands: list[Reader], name: str) -> Evaluate:
    unit, count = _suffix(name)
    size = BITS[unit] // 8 * max(1, count)

    def evaluate(group: Any) -> Array:
        addresses, inside = _inside(group, operands[:3], size)
        return group.load("global", addresses, unit, count, inside)

    return evaluate


@intrinsic("raw.ptr.buffer.store")
def buffer_store(operands: list[Reader], name: str) -> Evaluate:
    unit, count = _suffix(name)
    size = BITS[unit] // 8 * max(1, count)

    def evaluate(group: Any) -> None:
        addresses, inside = _inside(group, operands[1:4], size)
        group.store("global", addresses, operands[0](group), unit, count, inside)

    return evaluate
