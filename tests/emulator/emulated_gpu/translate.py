"""Instructions to actions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from emulated_gpu import (  # noqa: F401  (they fill the table)
    arithmetic,
    bits,
    loads,
    mbarrier,
    moves,
    tcgen05,
    tensor,
    warp,
)
from emulated_gpu.faults import NotEmulated
from emulated_gpu.operands import Action, Operands
from emulated_gpu.parse import Instruction
from emulated_gpu.table import INSTRUCTIONS

# Takes an instruction, the kernel's operands and the instruction's action; returns what runs instead.
Wrap = Callable[[Instruction, Operands, Action], Action]


def action(instruction: Instruction, operands: Operands, wrap: Wrap | None = None) -> Action:
    """What a unit of warps does at this instruction; NotEmulated names one that is not known here.

    Args:
        instruction: what to translate.
        operands: of its kernel.
        wrap: applied to the action inside its guard, such as `counting.observed`.
    """
    opcode, *mods = instruction.op.split(".")
    try:
        execute = INSTRUCTIONS[opcode](operands, mods, instruction.operands)
    except (KeyError, ValueError, AttributeError, IndexError, StopIteration) as error:
        raise NotEmulated(f"{instruction} ({type(error).__name__}: {error})") from error
    if wrap is not None:
        execute = wrap(instruction, operands, execute)
    if instruction.guard is None:
        return execute
    guard = operands.read(("!" if instruction.negated else "") + instruction.guard, "pred")

    def guarded(u: Any) -> None:
        outer = u.mask
        mask = guard(u) if outer is None else guard(u) & outer
        if mask.any():
            u.mask = None if mask.all() else mask
            execute(u)
            u.mask = outer

    return guarded
