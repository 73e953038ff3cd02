"""Instructions of tensor memory (sm_100).

Loads and stores happen at once, so a missing `tcgen05.wait::ld` or `::st` does not show; products run as late
as the wait at their barrier allows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from emulated_gpu.faults import Fault, NotEmulated
from emulated_gpu.number_types import Array
from emulated_gpu.operands import Action, Operands
from emulated_gpu.table import instruction
from emulated_gpu.tensor_memory import Arrival, product


@instruction("tcgen05")
def tensor_memory(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    """Dispatch on the part of the opcode that names what happens."""
    makers = {
        "alloc": _allocate, "dealloc": _free, "ld": _load, "st": _store, "mma": _multiply, "commit": _commit
    }  # fmt: skip
    if mods[0] in makers:
        return makers[mods[0]](operands, mods, texts)
    if mods[0] in ("relinquish_alloc_permit", "wait::ld", "wait::st"):
        return lambda u: None
    raise ValueError("kind of tcgen05")


def _first(u: Any, values: Any) -> int:
    """The value of the first active thread, of what one thread or one warp does for all."""
    return int(np.broadcast_to(values, (u.size,))[0 if u.mask is None else int(u.mask.argmax())])


def _allocate(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    address, columns = operands.address(texts[0], "shared"), operands.read(texts[1], "u32")

    def allocate(u: Any) -> None:
        memory = u.program.tensor_memory
        if memory.columns:
            raise NotEmulated("a second allocation of tensor memory")
        memory.columns = _first(u, columns(u))
        u.program.shared.store(np.array([_first(u, address(u))]), np.zeros((1, 1), np.uint32), 4, u)

    return allocate


def _free(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    columns = operands.read(texts[1], "u32")

    def free(u: Any) -> None:
        memory = u.program.tensor_memory
        if memory.columns != _first(u, columns(u)) or memory.queue:
            raise Fault("tensor memory is freed that is in use, or not as it was allocated")
        memory.columns = 0

    return free


def _places(u: Any, mods: list[str], addresses: Array, count: int, second: int) -> tuple[Array, Array]:
    """(threads, count) lanes and columns of a load or store, by the shapes of the PTX manual.

    16x32bx2: lanes 16 to 31 of a warp take the same 16 lanes of memory, `second` columns further on.
    """
    if u.mask is not None:
        raise Fault("tcgen05.ld or tcgen05.st in divergent code")
    lane, warp = u.thread_ids.astype(np.int64) & 31, u.thread_ids.astype(np.int64) >> 5
    base, column = addresses >> 16, addresses & 0xFFFF
    if (base // 32 != warp % 4).any():
        raise Fault("a warp reaches for another warp's lanes of tensor memory")
    if "16x32bx2" in mods:
        lanes, column = base + lane % 16, column + lane // 16 * second
    elif "32x32b" in mods:
        lanes = base + lane
    else:
        raise NotEmulated(f"shape of tcgen05: {'.'.join(mods)}")
    columns = column[:, None] + np.arange(count)
    return np.broadcast_to(lanes[:, None], columns.shape), columns


def _check(mods: list[str], count: int) -> None:
    if mods[1:3] != ["sync", "aligned"] or mods[-1] != "b32" or f"x{count}" not in mods or len(mods) != 6:
        raise ValueError("kind of tcgen05.ld or tcgen05.st")


def _load(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    writers = [operands.write(name) for name in operands.vector(texts[0])]
    address, second = operands.address(texts[1], "shared"), int(texts[2], 0) if len(texts) > 2 else 0
    _check(mods, len(writers))

    def load(u: Any) -> None:
        found = u.program.tensor_memory.load(*_places(u, mods, address(u), len(writers), second))
        for place, write in enumerate(writers):
            write(u, found[:, place].copy())

    return load


def _store(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    readers = [operands.read(name, "b32") for name in operands.vector(texts[-1])]
    address, second = operands.address(texts[0], "shared"), int(texts[1], 0) if len(texts) > 2 else 0
    _check(mods, len(readers))

    def store(u: Any) -> None:
        values = np.stack([np.broadcast_to(read(u), (u.size,)) for read in readers], axis=1)
        u.program.tensor_memory.store(*_places(u, mods, address(u), len(readers), second), values)

    return store


def _multiply(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    if mods[1] != "cta_group::1" or mods[2:] not in (["kind::f16"], ["kind::tf32"]):
        raise ValueError("kind of tcgen05.mma")
    target, right = operands.address(texts[0], "shared"), operands.read(texts[2], "u64")
    from_tensor = texts[1].startswith("[")
    left = operands.address(texts[1], "shared") if from_tensor else operands.read(texts[1], "u64")
    fields, keep = operands.read(texts[3], "u32"), operands.read(texts[4], "pred")

    def multiply(u: Any) -> None:
        if u.mask is None or u.mask.sum() != 1:
            raise Fault("tcgen05.mma by more than one thread")
        source = "tensor" if from_tensor else "shared", _first(u, left(u))
        new = product(
            u.program, u, _first(u, target(u)), source, _first(u, right(u)), _first(u, fields(u)),
            bool(_first(u, keep(u))),
        )  # fmt: skip
        u.program.tensor_memory.issue(new)

    return multiply


def _commit(operands: Operands, mods: list[str], texts: list[str]) -> Action:
    address = operands.address(texts[0], "shared")

    def commit(u: Any) -> None:
        u.program.tensor_memory.queue.append(Arrival(_first(u, address(u))))

    return commit
