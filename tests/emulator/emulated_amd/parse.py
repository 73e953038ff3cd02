"""LLVM IR text to blocks of instructions."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from emulated_gpu.faults import NotEmulated

from emulated_amd import lanes, memory, scalar, vectors  # noqa: F401  (they fill the tables)
from emulated_amd.table import INSTRUCTIONS, INTRINSICS, Evaluate
from emulated_amd.values import TYPE, element, reader, split, typed

_FLAGS = re.compile(
    r"\b(nuw|nsw|nneg|exact|disjoint|inbounds|samesign|fast|contract|afn|nnan|ninf|nsz|arcp|reassoc|tail) "
)
Phi = tuple[str, str, list[tuple[Callable[[Any], Any], str]]]
Branch = tuple[Callable[[Any], Any], str, str]


class Block:
    """Phis, instructions as (text, target or None, evaluation), and the branch; None returns."""

    def __init__(self) -> None:
        self.phis: list[Phi] = []
        self.body: list[tuple[str, str | None, Evaluate]] = []
        self.branch: Branch | None = None


class Code:
    """A kernel.

    Attributes:
        arguments: (type, name) of each.
        blocks: in the order of the text.
        labels: number of the block that a label begins.
    """

    def __init__(self, text: str) -> None:
        start = text.index("define amdgpu_kernel")
        head, *lines = text[start : text.index("\n}", start)].split("\n")
        inner = head[head.index("(") + 1 : head.rindex(") ")]
        self.arguments = re.findall(rf"({TYPE})[^,%]*%(\d+)", re.sub(r"captures\(none\)", "", inner))
        # The first block has the number after the last argument's, unwritten.
        self.blocks, self.labels = [Block()], {str(len(self.arguments)): 0}
        for line in lines:
            self._add(re.sub(r", !.*$", "", line.split(" ;")[0].strip()))

    def _add(self, line: str) -> None:
        if match := re.match(r"([\w.\-]+):", line):
            self.labels[match[1]] = len(self.blocks)
            self.blocks.append(Block())
            return
        match = re.match(r"(?:%([\w.\-]+) = )?(\w.*)", line)
        if match is None:
            return
        target, text = match[1], _FLAGS.sub("", match[2])
        opcode, _, operands = text.partition(" ")
        block = self.blocks[-1]
        if opcode == "phi":
            kind = re.match(TYPE, operands)
            assert kind is not None, line
            sources = re.findall(r"\[ (.+?), %([\w.\-]+) \]", operands)
            block.phis.append(
                (target, kind[0], [(reader(kind[0], value), label) for value, label in sources])
            )
        elif opcode == "br":
            block.branch = _branch(operands)
        elif opcode not in ("ret", "fence"):
            block.body.append((line, target, _evaluation(opcode, operands, line)))


def _branch(text: str) -> Branch:
    parts = split(text)
    labels = [part.split("%")[1] for part in parts if part.startswith("label")]
    condition = reader("i1", "true") if len(parts) == 1 else typed(parts[0])[1]
    return condition, labels[0], labels[-1]


def _evaluation(opcode: str, text: str, line: str) -> Evaluate:
    try:
        if opcode != "call":
            return INSTRUCTIONS[opcode](opcode, text)
        match = re.search(r"@llvm\.(?:amdgcn\.)?([\w.]+)\((.*)\)", text)
        assert match is not None
        prefix = next(each for each in INTRINSICS if match[1].startswith(each))
        return INTRINSICS[prefix]([typed(part)[1] for part in split(match[2])], match[1])
    except (KeyError, StopIteration, AssertionError, ValueError) as error:
        raise NotEmulated(f"{line} ({type(error).__name__}: {error})") from error


def shape(kind: str, lanes_: int) -> tuple[int, ...]:
    """Of a value with one row per lane."""
    count = element(kind)[1]
    return (lanes_, count) if count else (lanes_,)
