"""What a launch executed: instructions by class, global sectors, shared wavefronts, FLOPs, bytes in flight.

Rules, all per warp instruction and for its active threads:

    sector      32 aligned bytes of global memory, counted from the start of a storage, as GPUs allocate. An
                instruction requests each sector once, however many threads want it. Fully coalesced, the
                distinct bytes that it wants fill whole sectors.
    wavefront   one pass over the 32 banks of 4 bytes of shared memory. Accesses of 8 bytes pass by half
                warps, those of 16 bytes, ldmatrix and stmatrix by eight rows. A pass takes as many
                wavefronts as its busiest bank has distinct words; free of conflicts it takes one.
    wgmma       operands in shared memory are counted in bytes, once per warpgroup. Their wavefronts are not
                public; the layouts that the instruction takes are free of conflicts.

Instructions are those of the PTX. ptxas removes most moves and fuses some of the rest.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from emulated_gpu.number_types import Array
from emulated_gpu.parse import Instruction, Kernel

SECTOR = 32
BANK_BYTES = 128
_NOBODY = -1

CLASSES = {
    "special": ("ex2", "lg2", "rcp", "sqrt", "rsqrt", "sin", "cos", "tanh"),
    "move": ("mov", "cvt", "cvta", "selp", "prmt"),
    "predicate": ("setp", "bra", "ret", "exit"),
    "matrix load": ("ldmatrix", "stmatrix"),
    "async copy": ("cp",),
    "tensor": ("mma", "wgmma"),
    "warp": ("shfl", "redux", "elect", "bar", "barrier", "fence"),
}
_CLASS_OF = {opcode: name for name, opcodes in CLASSES.items() for opcode in opcodes}


def class_of(op: str) -> str:
    """Class of an opcode with its modifiers: "add.f32" is "float", "ld.global.b32" is "global"."""
    opcode, *mods = op.split(".")
    if opcode in ("ld", "st"):
        return next(mod.split("::")[0] for mod in mods if mod.split("::")[0] in ("param", "global", "shared"))
    if opcode in _CLASS_OF:
        return _CLASS_OF[opcode]
    if opcode == "div" and mods[-1][0] == "f":
        return "special"
    if mods[-1] == "pred":
        return "predicate"
    return "float" if "f" in mods[-1] else "integer"


def distinct(values: Array, active: Array) -> Array:
    """(warps,) how many different values the active threads of each warp have; both are (warps, threads)."""
    ordered = np.sort(np.where(active, values, _NOBODY), axis=1)
    changes = (ordered[:, 1:] != ordered[:, :-1]).sum(1)
    return changes + 1 - (~active).any(1)


def wavefronts(addresses: Array, active: Array, width: int) -> tuple[int, int]:
    """Wavefronts of shared accesses of `width` bytes per thread, and how many without conflicts.

    Args:
        addresses: (warps, threads); 32 threads, or the 8 rows of a matrix each.
        active: (warps, threads) bool.
        width: bytes per thread; accesses are aligned to it.
    """
    unit = max(width, 4)
    groups = BANK_BYTES // unit
    passes, takes = addresses.reshape(-1, groups) // unit, active.reshape(-1, groups)
    ordered = np.sort(np.where(takes, passes, _NOBODY), axis=1)
    first = np.ones(ordered.shape, dtype=bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first &= ordered != _NOBODY
    rows = np.broadcast_to(np.arange(len(ordered))[:, None], ordered.shape)
    places = rows[first] * groups + ordered[first] % groups
    busy = np.bincount(places, minlength=ordered.size).reshape(ordered.shape)
    return int(busy.max(1).sum()), int(takes.any(1).sum())


@dataclass
class Access:
    """All executions of one instruction that accesses memory.

    Attributes:
        instruction: with its line of the PTX.
        space: name of the tensor that it accesses, or "shared".
        executed: warp instructions.
        requested: bytes that threads wanted.
        passes: sectors, or wavefronts.
        ideal: sectors of the same bytes fully coalesced, or wavefronts free of conflicts.
    """

    instruction: Instruction
    space: str
    executed: int = 0
    requested: int = 0
    passes: int = 0
    ideal: int = 0


@dataclass
class Traffic:
    """What a kernel wanted of one tensor.

    Attributes:
        requested: bytes that threads wanted.
        sectors: that warp instructions requested.
        ideal: sectors of the same bytes fully coalesced.
        touched: distinct bytes.
    """

    requested: int
    sectors: int
    ideal: int
    touched: int


class Counters:
    """Counts of one launch.

    Args:
        kernel: what is launched.
        names: of the tensors, in the order in which the launch is given them; several tensors of one storage
            count under the name of the first.

    Attributes:
        accesses: by instruction (its `id`) and space; "shared" is one space, every tensor another.
        flops: of the tensor cores.
        operand_bytes: that wgmma read from shared memory.
        programs: that ran.
    """

    def __init__(self, kernel: Kernel, names: list[str]) -> None:
        self.kernel, self.names = kernel, names
        self.accesses: dict[tuple[int, str], Access] = {}
        self.flops = self.operand_bytes = self.programs = 0
        self._executed = [0] * len(kernel.blocks)
        self._peaks: dict[tuple[int, int], int] = {}

    def attach(self, memory: Any, tensors: list[Any]) -> None:
        """Take the storages of a launch."""
        self._starts = memory.starts
        pointers = [tensor.untyped_storage().data_ptr() for tensor in tensors]
        self._storages = [self.names[pointers.index(start)] for start in memory.starts.tolist()]
        self._touched = [
            np.zeros((end - start + 1) // 2, dtype=bool) for start, end in zip(memory.starts, memory.ends)
        ]

    def block(self, index: int, mask: Array | None, size: int) -> None:
        """A unit of `size` threads executes a basic block; `mask` is who of them is active, None is all."""
        self._executed[index] += size // 32 if mask is None else int(mask.reshape(-1, 32).any(1).sum())

    def global_access(self, instruction: Instruction, addresses: Array, active: Array, width: int) -> None:
        """Threads access `width` bytes each at `addresses`; both arrays are (warps, 32)."""
        storages = np.searchsorted(self._starts, addresses, side="right") - 1
        for number in np.unique(storages[active]).tolist():
            takes = active & (storages == number)
            taking = takes.any(1)
            mine, takes = addresses[taking] - self._starts[number], takes[taking]
            access = self._access(instruction, self._storages[number])
            access.executed += len(mine)
            access.requested += int(takes.sum()) * width
            access.passes += int(distinct(mine // SECTOR, takes).sum())
            access.ideal += int((-(-distinct(mine, takes) * width // SECTOR)).sum())
            halves = np.unique(mine[takes]) >> 1
            self._touched[number][halves[:, None] + np.arange(max(1, width // 2))] = True

    def shared_access(self, instruction: Instruction, addresses: Array, active: Array, width: int) -> None:
        """Threads access `width` bytes each of shared memory; see `wavefronts`."""
        taking = active.any(1)
        access = self._access(instruction, "shared")
        access.executed += int(taking.sum())
        access.requested += int(active.sum()) * width
        taken, free = wavefronts(addresses[taking], active[taking], width)
        access.passes += taken
        access.ideal += free

    def in_flight(self, program: int, unit: int, size: int) -> None:
        """A unit of warps has `size` bytes of asynchronous copies under way."""
        self._peaks[program, unit] = max(size, self._peaks.get((program, unit), 0))

    def _access(self, instruction: Instruction, space: str) -> Access:
        return self.accesses.setdefault((id(instruction), space), Access(instruction, space))

    @property
    def instructions(self) -> Counter[str]:
        """Warp instructions by class; those whose guard disables them count, as they are issued."""
        total: Counter[str] = Counter()
        for block, times in zip(self.kernel.blocks, self._executed):
            for each in [*block.body, *([block.end] if block.end else [])]:
                total[class_of(each.op)] += times
        return total

    @property
    def bytes_in_flight(self) -> int:
        """Most bytes of asynchronous copies that one program had under way."""
        programs = {program for program, _ in self._peaks}
        return max((sum(v for (p, _), v in self._peaks.items() if p == each) for each in programs), default=0)

    @property
    def traffic(self) -> dict[str, Traffic]:
        """Global traffic by tensor."""
        found = {name: Traffic(0, 0, 0, int(t.sum()) * 2) for name, t in zip(self._storages, self._touched)}
        for access in self.accesses.values():
            if access.space != "shared":
                traffic = found[access.space]
                traffic.requested += access.requested
                traffic.sectors += access.passes
                traffic.ideal += access.ideal
        return {name: traffic for name, traffic in found.items() if traffic.sectors}

    @property
    def shared(self) -> list[Access]:
        """Accesses to shared memory, most wavefronts beyond the ideal first."""
        mine = [access for access in self.accesses.values() if access.space == "shared"]
        return sorted(mine, key=lambda access: access.ideal - access.passes)
