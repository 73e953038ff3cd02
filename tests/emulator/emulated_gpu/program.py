"""Programs (thread blocks), their units of warps, and who runs when."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from emulated_gpu.asynchronous import Copies, Products
from emulated_gpu.counters import Counters
from emulated_gpu.faults import Fault, NotEmulated
from emulated_gpu.global_memory import Global
from emulated_gpu.mbarrier import Barriers
from emulated_gpu.number_types import UNSIGNED, Array
from emulated_gpu.operands import Operands
from emulated_gpu.parse import Instruction, Kernel, parse
from emulated_gpu.shared_memory import Shared
from emulated_gpu.tensor_memory import TensorMemory
from emulated_gpu.translate import Wrap, action

# Instructions of a turn of the loop that asks whether an mbarrier's phase has ended.
_LONGEST_WAIT_LOOP = 4
# Given a unit, go to another block (None), or stop at a barrier or the end, whose name is returned.
End = Callable[[Any], "str | None"]


class Unit:
    """Warps that execute in lockstep: one, or all of a program.

    Where threads part, those at the lowest basic block go first.

    Attributes:
        name: number of its first warp.
        mask: (threads,) which are active; None is all.
        epoch: barriers passed.
        waits: whether it has just asked in vain whether an mbarrier's phase has ended.
        registers: one array per register, None before the first write.
    """

    def __init__(self, program: Program, first_thread: int, size: int) -> None:
        self.program = program
        self.name = first_thread // 32
        self.size = size
        self.thread_ids = np.arange(first_thread, first_thread + size, dtype=np.uint32)
        self.registers: list[Any] = [None] * program.code.num_registers
        self.mask: Array | None = None
        self.epoch = 0
        self.block = 0
        self.blocks: Array | None = None  # per thread, where they differ
        self.copies = Copies(self)
        self.products = Products(self)
        self.executed = 0
        self.waits = False

    def run(self) -> str:
        """Execute until a barrier, the end, or an mbarrier whose phase has not ended; says which."""
        code = self.program.code
        while True:
            actions, end = code.blocks[self.block]
            position = -1
            try:
                for position, execute in enumerate(actions):  # noqa: B007
                    execute(self)
            except Exception as error:
                instruction = code.kernel.blocks[self.block].body[position]
                where = f"{code.kernel.name}, program {self.program.number}, warp {self.name}, {instruction}"
                raise Fault(f"{where}: {type(error).__name__}: {error}") from error
            self.executed += len(actions) + 1
            if self.program.counters is not None:
                self.program.counters.block(self.block, self.mask, self.size)
            outcome = end(self)
            if outcome is not None:
                return outcome
            if self.waits:
                self.waits = False
                return "mbarrier"

    def value(self, index: int, bits: int) -> Any:
        """A register's bits; before the first write a NaN or a large number, and a count of such reads."""
        held = self.registers[index]
        if held is not None:
            return held
        self.program.undefined_reads += 1
        if bits == 1:
            return np.full(self.size, self.program.rng.random() < 0.5)
        return np.full(self.size, 0xFFFFDEADFFFFDEAD & (2**bits - 1), dtype=UNSIGNED[bits])

    def go(self, target: int, fallthrough: int, taken: Array | None) -> None:
        """Send active threads to block `target` where `taken` holds, else to `fallthrough`; None is all."""
        if self.blocks is None and (taken is None or taken.all()):
            self.block = target
        elif self.blocks is None and taken is not None and not taken.any():
            self.block = fallthrough
        else:
            active = np.ones(self.size, dtype=bool) if self.mask is None else self.mask
            blocks = np.full(self.size, self.block) if self.blocks is None else self.blocks
            there = target if taken is None else np.where(taken, target, fallthrough)
            self.blocks = np.where(active, there, blocks)
            self.block = int(self.blocks.min())
            self.mask = self.blocks == self.block
            if self.mask.all():
                self.blocks = self.mask = None


class Code:
    """A translated kernel.

    Args:
        text: PTX.
        wrap: see `translate.action`.

    Attributes:
        text: the PTX.
        kernel: the parsed text.
        blocks: actions of each basic block, and what ends it.
        numbers: place of each register in a unit's list.
    """

    def __init__(self, text: str, wrap: Wrap | None = None) -> None:
        self.text = text
        self.kernel: Kernel = parse(text)
        operands = Operands(self.kernel)
        self.blocks = [
            ([action(each, operands, wrap) for each in block.body], self._end(operands, index, block.end))
            for index, block in enumerate(self.kernel.blocks)
        ]
        self.numbers = operands.numbers
        self.num_registers = len(operands.numbers)

    def _end(self, operands: Operands, index: int, end: Instruction | None) -> End:
        if end is None:
            return lambda u: u.go(index + 1, index + 1, None)
        if end.op.startswith("bra"):
            return self._branch(operands, index, end)
        if end.op in ("ret", "exit") and not end.guard:
            return _leave
        if end.op == "bar.sync" and len(end.operands) == 1 and not end.guard:
            return _barrier(index, end)
        raise NotEmulated(str(end))

    def _branch(self, operands: Operands, index: int, end: Instruction) -> End:
        target = self.kernel.labels[end.operands[0]]
        if end.guard is None:
            return lambda u: u.go(target, index + 1, None)
        guard = operands.read(("!" if end.negated else "") + end.guard, "pred")
        return lambda u: u.go(target, index + 1, np.broadcast_to(guard(u), (u.size,)))


def _leave(u: Unit) -> str:
    if u.mask is not None:
        raise Fault("some threads return while others go on")
    return "end"


def _barrier(index: int, end: Instruction) -> End:
    name = int(end.operands[0], 0)

    def wait(u: Unit) -> str:
        if u.mask is not None:
            raise Fault(f"a barrier in divergent code: {end}")
        u.block = index + 1
        return f"barrier {name}"

    return wait


class Program:
    """One thread block. Between barriers its units run one after the other, in an order drawn each time."""

    def __init__(
        self,
        code: Code,
        number: int,
        grid: int,
        arguments: list[Any],
        memory: Global,
        shared_size: int,
        unit_warps: int,
        rng: random.Random,
        counters: Counters | None = None,
    ) -> None:
        self.code, self.number, self.grid, self.arguments = code, number, grid, arguments
        self.memory, self.rng, self.counters = memory, rng, counters
        self.num_threads = code.kernel.num_threads
        self.undefined_reads = 0
        self.shared = Shared(shared_size)
        self.barriers, self.tensor_memory = Barriers(), TensorMemory(self)
        size = unit_warps * 32 or self.num_threads
        self.units = [Unit(self, first, size) for first in range(0, self.num_threads, size)]

    def run(self) -> None:
        """Execute to the end."""
        self.memory.program = self.number
        while True:
            order = list(self.units)
            self.rng.shuffle(order)
            outcomes = self._run_to_barrier(order)
            if len(outcomes) > 1:
                raise Fault(f"warps of one program wait at different places: {sorted(outcomes)}")
            if outcomes == {"end"}:
                break
            for unit in self.units:
                unit.epoch += 1
        if any(unit.products.any for unit in self.units) or self.tensor_memory.queue:
            raise Fault("a program ends with products under way")
        if self.tensor_memory.columns:
            raise Fault("a program ends and keeps its tensor memory")

    def _run_to_barrier(self, units: list[Unit]) -> set[str]:
        """Run all units; those that wait at an mbarrier run again once others have, who may arrive there."""
        outcomes: set[str] = set()
        while units:
            before = [unit.executed for unit in units]
            results = [unit.run() for unit in units]
            outcomes |= set(results) - {"mbarrier"}
            waiting = [unit for unit, result in zip(units, results) if result == "mbarrier"]
            steps = [unit.executed - count for unit, count in zip(units, before)]
            if len(waiting) == len(units) and max(steps) <= _LONGEST_WAIT_LOOP:
                raise Fault("all warps wait at mbarriers where nothing will arrive")
            units = waiting
        return outcomes


@dataclass
class Launch:
    """What a launch did.

    Attributes:
        kernel: its name.
        programs: thread blocks.
        instructions: warp instructions executed.
        seconds: time of the emulation.
        unfenced_reads: see `Shared`.
        undefined_reads: registers read before they were written.
        counters: where they were asked for.
    """

    kernel: str
    programs: int
    instructions: int
    seconds: float
    unfenced_reads: int
    undefined_reads: int
    counters: Counters | None = None


def launch(
    code: Code,
    grid: int,
    arguments: list[Any],
    tensors: list[Any],
    shared_size: int,
    unit_warps: int = 1,
    seed: int = 0,
    counters: Counters | None = None,
) -> Launch:
    """Run every program of a grid, one after the other in an order drawn from `seed`.

    Args:
        code: the kernel.
        grid: programs.
        arguments: one array of bits per parameter.
        tensors: whose memory may be accessed.
        shared_size: bytes of shared memory per program.
        unit_warps: warps that run in lockstep; 1 finds races between warps, 0 (all of a program) is faster.
        seed: of the order of programs and warps.
        counters: to fill; then the code is one of `counting.counted`.

    Raises:
        Fault: something that a GPU would trap at or do wrong.
    """
    start = time.perf_counter()
    memory, rng = Global(tensors), random.Random(seed)
    if counters is not None:
        counters.attach(memory, tensors)
        counters.programs = grid
    numbers = list(range(grid))
    rng.shuffle(numbers)
    instructions = unfenced = undefined = 0
    with np.errstate(all="ignore"):
        for number in numbers:
            program = Program(code, number, grid, arguments, memory, shared_size, unit_warps, rng, counters)
            program.run()
            instructions += sum(unit.executed * unit.size // 32 for unit in program.units)
            unfenced += program.shared.unfenced_reads
            undefined += program.undefined_reads
    seconds = time.perf_counter() - start
    return Launch(code.kernel.name, grid, instructions, seconds, unfenced, undefined, counters)
