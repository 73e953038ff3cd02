"""Observers: what an instruction that is about to execute adds to the counters of its launch."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from emulated_gpu.number_types import bits_of
from emulated_gpu.operands import Action, Operands
from emulated_gpu.parse import Instruction
from emulated_gpu.program import Code

Maker = Callable[[Instruction, Operands, "list[str]", "list[str]"], "Action | None"]


@functools.cache
def counted(text: str) -> Code:
    """Translate PTX to code that counts; it runs only in launches with counters."""
    return Code(text, observed)


def observed(instruction: Instruction, operands: Operands, execute: Action) -> Action:
    """Put an observer before an instruction's action, where it has one."""
    opcode, *mods = instruction.op.split(".")
    observe = (
        _OBSERVERS[opcode](instruction, operands, mods, instruction.operands)
        if opcode in _OBSERVERS
        else None
    )
    if observe is None:
        return execute

    def both(u: Any) -> None:
        observe(u)
        execute(u)

    return both


def _active(u: Any) -> Any:
    return (np.ones(u.size, dtype=bool) if u.mask is None else u.mask).reshape(-1, 32)


def _memory(instruction: Instruction, operands: Operands, mods: list[str], texts: list[str]) -> Action | None:
    """ld and st of global and shared memory."""
    space = next((m.split("::")[0] for m in mods if m.split("::")[0] in ("global", "shared")), None)
    if space is None:
        return None
    value, place = (texts[0], texts[1]) if instruction.op.startswith("ld") else (texts[1], texts[0])
    width = bits_of(mods[-1]) // 8 * len(operands.vector(value))
    address = operands.address(place, space)

    def observe(u: Any) -> None:
        counters = u.program.counters
        count = counters.global_access if space == "global" else counters.shared_access
        count(instruction, address(u).view(np.int64).reshape(-1, 32), _active(u), width)

    return observe


def _copy(instruction: Instruction, operands: Operands, mods: list[str], texts: list[str]) -> Action | None:
    """cp.async: its reads of global memory and its writes to shared memory."""
    if len(texts) < 3:
        return None
    to, source, width = (
        operands.address(texts[0], "shared"),
        operands.address(texts[1], "global"),
        int(texts[2], 0),
    )
    used = operands.read(texts[3], "u32") if len(texts) > 3 else None

    def observe(u: Any) -> None:
        counters, active = u.program.counters, _active(u)
        have = np.broadcast_to(np.uint32(width) if used is None else used(u), (u.size,)).reshape(-1, 32)
        counters.global_access(
            instruction, source(u).view(np.int64).reshape(-1, 32), active & (have > 0), width
        )
        counters.shared_access(instruction, to(u).reshape(-1, 32), active, width)
        under_way = [copy for group in (*u.copies.groups, u.copies.open) for copy in group]
        size = width * int(active.sum()) + sum(copy.size * len(copy.to) for copy in under_way)
        counters.in_flight(u.program.number, u.name, size)

    return observe


def _matrices(instruction: Instruction, operands: Operands, mods: list[str], texts: list[str]) -> Action:
    """ldmatrix and stmatrix: eight rows of 16 bytes per matrix."""
    place, values = (texts[1], texts[0]) if instruction.op.startswith("ld") else (texts[0], texts[1])
    address, count = operands.address(place, "shared"), len(operands.vector(values))

    def observe(u: Any) -> None:
        rows = address(u).reshape(-1, 32)[:, : 8 * count]
        u.program.counters.shared_access(instruction, rows, np.ones(rows.shape, dtype=bool), 16)

    return observe


def _product(
    instruction: Instruction, operands: Operands, mods: list[str], texts: list[str]
) -> Action | None:
    """mma and wgmma; four warps share a product of wgmma."""
    shape = next((match for mod in mods if (match := re.fullmatch(r"m(\d+)n(\d+)k(\d+)", mod))), None)
    if shape is None:
        return None
    rows, columns, depth = map(int, shape.groups())
    warps = 4 if instruction.op.startswith("wgmma") else 1
    flops = 2 * rows * columns * depth // warps
    step = 32  # bytes along K
    operand = 0 if warps == 1 else step * (columns + (0 if texts[1].startswith("{") else rows)) // warps

    def observe(u: Any) -> None:
        u.program.counters.flops += flops * (u.size // 32)
        u.program.counters.operand_bytes += operand * (u.size // 32)

    return observe


_OBSERVERS: dict[str, Maker] = {
    "ld": _memory, "st": _memory, "cp": _copy, "ldmatrix": _matrices, "stmatrix": _matrices,
    "mma": _product, "wgmma": _product,
}  # fmt: skip
