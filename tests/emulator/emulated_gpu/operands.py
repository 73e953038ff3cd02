"""Operands of instructions: how a unit of warps reads and writes them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from emulated_gpu.number_types import DTYPES, UNSIGNED, Array, bits_of, flush_subnormals
from emulated_gpu.parse import Kernel
from emulated_gpu.shared_memory import Shared

Action = Callable[[Any], None]
Reader = Callable[[Any], Array]
Writer = Callable[[Any, Array], None]

_ADDRESS = re.compile(r"\[\s*([%$\w]+)\s*(?:\+\s*(-?\w+))?\s*\]")
_REGISTER_DTYPES: dict[int, Any] = {1: np.bool_, **UNSIGNED}
_ZERO = np.uint32(0)
_SPECIAL: dict[str, Reader] = {
    "%tid.x": lambda u: u.thread_ids,
    "%tid.y": lambda u: _ZERO,
    "%tid.z": lambda u: _ZERO,
    "%laneid": lambda u: u.thread_ids & np.uint32(31),
    "%warpid": lambda u: u.thread_ids >> np.uint32(5),
    "%ctaid.x": lambda u: np.uint32(u.program.number),
    "%ctaid.y": lambda u: _ZERO,
    "%ctaid.z": lambda u: _ZERO,
    "%nctaid.x": lambda u: np.uint32(u.program.grid),
    "%ntid.x": lambda u: np.uint32(u.program.num_threads),
}


class Operands:
    """Makes readers and writers for the operands of one kernel; registers get numbers as they are met."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.numbers: dict[str, int] = {}

    def number(self, name: str) -> int:
        """Place of a register in a unit's list of registers."""
        return self.numbers.setdefault(name, len(self.numbers))

    def read(self, text: str, kind: str) -> Reader:
        """A function from a unit to the operand's values (one per thread, or one for all) as type `kind`."""
        dtype = DTYPES[kind]
        if text.startswith("!"):
            inner = self.read(text[1:], kind)
            return lambda u: ~inner(u)
        if text in _SPECIAL:
            special = _SPECIAL[text]
            return lambda u: special(u).view(dtype)
        if not self.kernel.is_register(text):
            value = constant(text, kind)
            return lambda u: value
        index, have, want = self.number(text), self.kernel.register_bits(text), bits_of(kind)
        if have < want:
            raise ValueError(f"{text} has {have} bits, {kind} needs {want}")
        if have == 1:
            return lambda u: u.value(index, have)
        if have > want:
            narrow = UNSIGNED[want]
            return lambda u: u.value(index, have).astype(narrow).view(dtype)
        return lambda u: u.value(index, have).view(dtype)

    def write(self, text: str) -> Writer:
        """A function that stores values in a register, for active threads alone; "_" takes and drops them."""
        if text == "_":
            return lambda u, value: None
        index, bits = self.number(text), self.kernel.register_bits(text)
        dtype = _REGISTER_DTYPES[bits]

        def write(u: Any, value: Array) -> None:
            if value.dtype != dtype:
                same_bits = value.dtype.itemsize * 8 == bits or value.dtype == np.float32
                value = value.view(dtype) if same_bits else value.astype(dtype)
            if value.shape != (u.size,):
                value = np.broadcast_to(value, (u.size,)).copy()
            if u.mask is not None:
                before = u.registers[index]
                value = np.where(u.mask, value, np.zeros(u.size, dtype) if before is None else before)
            u.registers[index] = value

        return write

    @staticmethod
    def vector(text: str) -> list[str]:
        """The parts of "{a, b}", or the one operand that there is."""
        return [part.strip() for part in text.strip("{} ").split(",")] if text.startswith("{") else [text]

    def address(self, text: str, space: str) -> Reader:
        """[register + offset]: uint64 of global memory, int64 of shared memory."""
        match = _ADDRESS.fullmatch(text)
        if match is None:
            raise ValueError(f"not an address: {text!r}")
        offset = int(match[2] or "0", 0)
        if space == "global":
            base = self.read(match[1], "s64")
            return lambda u: np.broadcast_to(base(u) + np.int64(offset), (u.size,)).view(np.uint64)
        base = self.read(match[1], "u32")
        return lambda u: np.broadcast_to(base(u).astype(np.int64) + offset, (u.size,))

    def elementwise(
        self, operands: list[str], kinds: list[str], function: Callable[..., Array], flush: bool = False
    ) -> Action:
        """The action that applies `function` to the operands after the first, and writes the first.

        Args:
            operands: target, then sources.
            kinds: type of each source.
            function: takes and returns one value per thread.
            flush: subnormal float32 count as zero, going in and coming out.
        """
        write = self.write(operands[0])
        readers = [self.read(text, kind) for text, kind in zip(operands[1:], kinds, strict=True)]
        if flush:
            return lambda u: write(
                u, flush_subnormals(function(*[flush_subnormals(reader(u)) for reader in readers]))
            )
        return lambda u: write(u, function(*[reader(u) for reader in readers]))

    def arithmetic(self, mods: list[str], operands: list[str], function: Callable[..., Array]) -> Action:
        """`elementwise` with every source of the type that the opcode ends in."""
        return self.elementwise(operands, [mods[-1]] * (len(operands) - 1), function, "ftz" in mods)


def constant(text: str, kind: str) -> Any:
    """An immediate operand: 0f and 0d precede the bits of a float.

    `global_smem` is where shared memory begins.
    """
    dtype = DTYPES[kind]
    if text == "global_smem":
        return np.uint64(Shared.BASE).astype(dtype)
    if match := re.fullmatch(r"0[fF]([0-9A-Fa-f]{8})", text):
        return np.uint32(int(match[1], 16)).view(dtype)
    if match := re.fullmatch(r"0[dD]([0-9A-Fa-f]{16})", text):
        return np.uint64(int(match[1], 16)).view(dtype)
    value = int(text.rstrip("U"), 0)
    if kind == "pred":
        return np.bool_(value != 0)
    bits = int(np.dtype(dtype).itemsize) * 8
    return UNSIGNED[bits](value & (2**bits - 1)).view(dtype)
