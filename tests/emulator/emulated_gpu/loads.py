"""Loads, stores and asynchronous copies."""

from __future__ import annotations

from typing import Any

import numpy as np

from emulated_gpu.number_types import DTYPES, bits_of
from emulated_gpu.operands import Action, Operands
from emulated_gpu.table import instruction


def _space(mods: list[str], known: tuple[str, ...]) -> str:
    return next(mod.split("::")[0] for mod in mods if mod.split("::")[0] in known)


@instruction("ld")
def load(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    space, kind, names = _space(mods, ("param", "global", "shared")), mods[-1], operands.vector(texts[0])
    writers, size, count, dtype = (
        [operands.write(name) for name in names],
        bits_of(kind) // 8,
        len(names),
        DTYPES[kind],
    )
    if space == "param":
        index = [name for name, _ in operands.kernel.parameters].index(texts[1].strip("[] "))
        return lambda u: writers[0](u, u.program.arguments[index].view(dtype))
    address = operands.address(texts[1], space)

    def execute(u: Any) -> None:
        addresses = address(u) if u.mask is None else address(u)[u.mask]
        if space == "global":
            found = u.program.memory.load(addresses, size, count)
        else:
            found = u.program.shared.load(addresses, size, count, u)
        for place, write in enumerate(writers):
            value = np.ascontiguousarray(found[:, place]).view(dtype)
            if u.mask is not None:
                spread = np.zeros(u.size, dtype)
                spread[u.mask] = value
                value = spread
            write(u, value)

    return execute


@instruction("st")
def store(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    space, kind, names = _space(mods, ("global", "shared")), mods[-1], operands.vector(texts[1])
    size = bits_of(kind) // 8
    readers = [operands.read(name, f"b{8 * size}") for name in names]
    address = operands.address(texts[0], space)

    def execute(u: Any) -> None:
        addresses = address(u)
        values = np.stack([np.broadcast_to(read(u), (u.size,)) for read in readers], axis=1)
        if u.mask is not None:
            addresses, values = addresses[u.mask], values[u.mask]
        if space == "global":
            u.program.memory.store(addresses, values, size)
        else:
            u.program.shared.store(addresses, values, size, u)

    return execute


@instruction("cp")
def copy(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    if mods[:2] == ["async", "commit_group"]:
        return lambda u: u.copies.commit()
    if mods[:2] == ["async", "wait_group"]:
        left = int(texts[0], 0)
        return lambda u: u.copies.wait(left)
    if mods[0] != "async" or mods[1] not in ("ca", "cg") or mods[2:4] != ["shared", "global"]:
        raise ValueError("kind of cp")
    to, source, size = (
        operands.address(texts[0], "shared"),
        operands.address(texts[1], "global"),
        int(texts[2], 0),
    )
    # The optional last operand says how many bytes to read; the rest is filled with zeros.
    used = operands.read(texts[3], "u32") if len(texts) > 3 else None

    def execute(u: Any) -> None:
        have = np.broadcast_to(np.uint32(size) if used is None else used(u), (u.size,))
        active = np.ones(u.size, dtype=bool) if u.mask is None else u.mask
        u.copies.start(to(u)[active], source(u)[active], have[active], size)

    return execute
