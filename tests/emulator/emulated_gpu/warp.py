"""What the threads of a warp do together, and fences."""

from __future__ import annotations

from typing import Any

import numpy as np

from emulated_gpu.faults import Fault
from emulated_gpu.operands import Action, Operands
from emulated_gpu.table import instruction

_FULL_WARP = np.uint32(0xFFFFFFFF)


@instruction("shfl")
def shuffle(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    target, _, predicate = texts[0].partition("|")
    write, mode = operands.write(target), mods[1]
    if predicate or mods[0] != "sync":
        raise ValueError("kind of shfl")
    kinds = ("b32", "u32", "u32", "u32")
    value, lanes, clamp, members = (operands.read(text, kind) for text, kind in zip(texts[1:], kinds))

    def execute(u: Any) -> None:
        if u.mask is not None:
            raise Fault("shfl.sync in divergent code")
        if (members(u) != _FULL_WARP).any():
            raise Fault("shfl.sync of part of a warp")
        lane = (u.thread_ids & np.uint32(31)).astype(np.int64)
        by, packed = lanes(u).astype(np.int64) & 31, clamp(u).astype(np.int64)
        limit, segment = packed & 31, (packed >> 8) & 31
        # As in the PTX manual: `segment` splits a warp, `limit` bounds what a lane may read.
        first, last = lane & segment, (lane & segment) | (limit & ~segment)
        source = {"up": lane - by, "down": lane + by, "bfly": lane ^ by, "idx": first | (by & ~segment)}[mode]
        valid = source >= last if mode == "up" else source <= last
        source = np.where(valid, source, lane)
        own = np.broadcast_to(value(u), (u.size,))
        write(u, own[source + (np.arange(u.size) & ~31)])

    return execute


@instruction("redux")
def reduce_warp(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    kind = mods[-1]
    is_float = kind[0] == "f"
    function = {
        "max": np.fmax if is_float else np.maximum,
        "min": np.fmin if is_float else np.minimum,
        "add": np.add,
    }[mods[1]]
    write, value = operands.write(texts[0]), operands.read(texts[1], kind)
    return lambda u: write(u, np.repeat(function.reduce(value(u).reshape(-1, 32), axis=1), 32))


@instruction("elect")
def elect(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    target, _, predicate = texts[0].partition("|")
    lane, chosen = operands.write(target), operands.write(predicate)

    def execute(u: Any) -> None:
        lane(u, np.zeros(u.size, np.uint32))
        chosen(u, (u.thread_ids & np.uint32(31)) == 0)

    return execute


@instruction("bar")
def warp_barrier(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    """bar.warp.sync; barriers of a whole program end a basic block instead (`program`)."""
    if mods[0] != "warp":
        raise ValueError("kind of bar")
    return lambda u: None


@instruction("fence")
def fence(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    if mods[0] == "proxy":
        return lambda u: u.program.shared.fence(u)
    return lambda u: None
