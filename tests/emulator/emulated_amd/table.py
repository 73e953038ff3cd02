"""The tables of instructions and of intrinsics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from emulated_amd.values import Reader

# From a workgroup to the values of an instruction, or None.
Evaluate = Callable[[Any], Any]
# Takes what follows the opcode.
INSTRUCTIONS: dict[str, Callable[[str, str], Evaluate]] = {}
# Takes readers of the arguments and the full name.
INTRINSICS: dict[str, Callable[[list[Reader], str], Evaluate]] = {}


def instruction(*opcodes: str) -> Callable[[Any], Any]:
    """Registers the function below it, which takes an opcode and its operands' text."""
    return lambda maker: [INSTRUCTIONS.update({opcode: maker}) for opcode in opcodes] and maker


def intrinsic(*prefixes: str) -> Callable[[Any], Any]:
    """Registers the function below it for intrinsics whose names begin so, without "llvm." and "amdgcn."."""
    return lambda maker: [INTRINSICS.update({prefix: maker}) for prefix in prefixes] and maker
