"""PTX text to basic blocks of instructions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

REGISTER_BITS = {
    "pred": 1,
    **dict.fromkeys(("b8", "u8", "s8"), 8),
    **dict.fromkeys(("b16", "u16", "s16", "f16"), 16),
    **dict.fromkeys(("b32", "u32", "s32", "f32"), 32),
    **dict.fromkeys(("b64", "u64", "s64", "f64"), 64),
}
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*")
_STATEMENT = re.compile(r"(?:@(!?)(%?\w+)\s+)?([\w.:]+)\s*(.*)", re.DOTALL)
# A block ends at these, where the scheduler decides who runs next.
_BLOCK_ENDS = ("bra", "ret", "exit", "bar", "barrier")


@dataclass
class Instruction:
    """One instruction.

    Attributes:
        guard: the predicate register that enables it, or None.
        negated: whether the guard enables it when false.
        op: the opcode with its modifiers, such as "add.f32".
        operands: as written; vectors in braces and addresses in brackets are one operand each.
        line: line of the PTX text.
    """

    guard: str | None
    negated: bool
    op: str
    operands: list[str]
    line: int

    def __str__(self) -> str:
        guard = f"@{'!' if self.negated else ''}{self.guard} " if self.guard else ""
        return f"line {self.line}: {guard}{self.op} {', '.join(self.operands)}"


@dataclass
class Block:
    """Instructions in a row, and what ends them: a branch, barrier or return, or None to fall through."""

    body: list[Instruction] = field(default_factory=list)
    end: Instruction | None = None


@dataclass
class Kernel:
    """A parsed kernel.

    Attributes:
        parameters: (name, type) of each.
        num_threads: threads per block, from `.reqntid`; 0 where the text does not say.
        bits: width of each register, or of each family of numbered registers.
        blocks: in the order of the text.
        labels: number of the block that a label begins.
    """

    name: str
    parameters: list[tuple[str, str]]
    num_threads: int
    bits: dict[str, int]
    blocks: list[Block]
    labels: dict[str, int]

    def register_bits(self, name: str) -> int:
        """Width of a register; KeyError for what is none."""
        return self.bits[name] if name in self.bits else self.bits[_family(name)]

    def is_register(self, name: str) -> bool:
        """Whether the text declares a register of this name."""
        return name in self.bits or _family(name) in self.bits


def _family(name: str) -> str:
    return re.sub(r"\d+$", "", name)


def _with_distinct_labels(text: str) -> str:
    """The text with the labels of inline assembly numbered, as each pair of braces has labels of its own."""
    number = 0

    def renamed(scope: re.Match[str]) -> str:
        nonlocal number
        number += 1
        code = scope[0]
        for label in re.findall(r"^\s*(\w+):\s*$", code, re.MULTILINE):
            code = re.sub(rf"(?<![\w$]){label}(?!\w)", f"{label}_{number}", code)
        return code

    return re.sub(r"^\s*\{\s*$.*?^\s*\}\s*$", renamed, text, flags=re.MULTILINE | re.DOTALL)


def parse(text: str) -> Kernel:
    """The first kernel of a PTX module; ValueError where there is none."""
    entry = re.search(r"\.entry\s+([\w$]+)\s*\(", text)
    if entry is None:
        raise ValueError("no kernel in this PTX")
    close = text.index(")", entry.end())
    declared = re.sub(r"//[^\n]*", "", text[entry.end() : close])
    parameters = re.findall(r"\.param\s+\.(\w+)[^,]*?([\w$]+)\s*(?:,|$)", declared.strip())
    opening = text.index("{", close)
    text = text[: opening + 1] + _with_distinct_labels(text[opening + 1 :])
    threads = re.search(r"\.(?:reqntid|maxntid)\s+(\d+)", text[close:opening])
    names = [(name, kind) for kind, name in parameters]
    kernel = Kernel(entry[1], names, int(threads[1]) if threads else 0, {}, [Block()], {})
    for line, statement in _statements(text, opening):
        _add(kernel, line, statement)
    return kernel


def _statements(text: str, opening: int) -> Iterator[tuple[int, str]]:
    """(line, statement) without comments, `.loc` lines and the braces of scopes; labels as "name:"."""
    line = text.count("\n", 0, opening) + 1
    pending, first, depth = "", line, 1
    for number, raw in enumerate(text[opening + 1 :].split("\n"), line):
        code = raw.split("//")[0].strip()
        if code.startswith((".loc", ".file")):
            continue
        if re.fullmatch(r"[$\w]+:", code) and not pending.strip("{} "):
            yield number, code
            continue
        for piece in re.split(r"(;|\{|\})", code):
            depth += {"{": 1, "}": -1}.get(piece, 0)
            if depth == 0:
                return
            if piece == ";":
                # Braces of scopes stand at the start of a statement, those of operands after the opcode.
                statement = pending.strip().lstrip("{} ")
                if statement:
                    yield first, statement
                pending = ""
            else:
                first = first if pending.strip() else number
                pending += piece
        pending += " "


def _add(kernel: Kernel, line: int, statement: str) -> None:
    if statement.endswith(":"):
        if kernel.blocks[-1].body:
            kernel.blocks.append(Block())
        kernel.labels[statement[:-1]] = len(kernel.blocks) - 1
    elif statement.startswith(".reg"):
        _declare(kernel, statement)
    elif not statement.startswith("."):
        _add_instruction(kernel, line, statement)


def _declare(kernel: Kernel, statement: str) -> None:
    _, kind, names = statement.split(None, 2)
    bits = REGISTER_BITS[kind[1:]]
    for declared in names.split(","):
        name = re.sub(r"<\d+>", "", declared.strip())
        if kernel.bits.setdefault(name, bits) != bits:
            raise ValueError(f"{name} is declared with two widths")


def _add_instruction(kernel: Kernel, line: int, statement: str) -> None:
    match = _STATEMENT.fullmatch(statement)
    if match is None:
        raise ValueError(f"line {line}: {statement!r} is not an instruction")
    negation, guard, op, rest = match.groups()
    operands = [operand.strip() for operand in _OPERAND.findall(rest)]
    instruction = Instruction(guard, negation == "!", op, operands, line)
    # bar.warp.sync orders threads of one warp, which run in lockstep here.
    if op.split(".")[0] in _BLOCK_ENDS and not op.startswith("bar.warp"):
        kernel.blocks[-1].end = instruction
        kernel.blocks.append(Block())
    else:
        kernel.blocks[-1].body.append(instruction)
