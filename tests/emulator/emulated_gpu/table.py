"""The table of instructions: opcode -> what makes its action."""

from __future__ import annotations

from collections.abc import Callable

from emulated_gpu.operands import Action, Operands

# Takes the kernel's operands, the opcode's modifiers and the operands' texts.
Maker = Callable[[Operands, list[str], list[str]], Action]
INSTRUCTIONS: dict[str, Maker] = {}


def instruction(opcode: str) -> Callable[[Maker], Maker]:
    """Registers the function below it for an opcode, such as "add" for add.f32 and add.s32."""

    def register(maker: Maker) -> Maker:
        INSTRUCTIONS[opcode] = maker
        return maker

    return register
