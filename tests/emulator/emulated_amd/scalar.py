"""Arithmetic, comparisons, conversions, selection."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from emulated_amd.table import Evaluate, instruction, intrinsic
from emulated_amd.values import (
    BITS,
    DTYPES,
    TYPE,
    UNSIGNED,
    Array,
    Reader,
    element,
    from_bf16,
    reader,
    split,
    to_bf16,
    typed,
)

_PLAIN = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "and": np.bitwise_and, "or": np.bitwise_or,
    "xor": np.bitwise_xor, "fdiv": np.divide,
}  # fmt: skip
_SIGNED = {
    "eq": np.equal, "ne": np.not_equal, "slt": np.less, "sle": np.less_equal, "sgt": np.greater,
    "sge": np.greater_equal, "ult": np.less, "ule": np.less_equal, "ugt": np.greater, "uge": np.greater_equal,
}  # fmt: skip
_FLOATS = {"lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "eq": np.equal}


def _two(text: str) -> tuple[str, Reader, Reader]:
    """ "i32 %1, 5" -> its type and both operands."""
    first, second = split(text)
    kind, left = typed(first)
    return kind, left, reader(kind, second)


@instruction("add", "sub", "mul", "and", "or", "xor", "fdiv")
def binary(opcode: str, text: str) -> Evaluate:
    _, left, right = _two(text)
    function = _PLAIN[opcode]
    return lambda group: function(left(group), right(group))


@instruction("fmul")
def multiply(opcode: str, text: str) -> Evaluate:
    """Keeps the exact product as well, for additions that are contracted with it."""
    kind, left, right = _two(text)
    dtype = DTYPES[element(kind)[0]]

    def evaluate(group: Any) -> Array:
        group.product = left(group).astype(np.float64) * right(group)
        return group.product.astype(dtype)

    return evaluate


@instruction("fadd", "fsub")
def contracted(opcode: str, text: str) -> Evaluate:
    """A product that is added is not rounded before, as code generation fuses the two."""
    first, second = split(text)
    kind, left, right = _two(text)
    names, dtype = (first.split()[-1][1:], second[1:]), DTYPES[element(kind)[0]]

    def evaluate(group: Any) -> Array:
        a, b = left(group).astype(np.float64), right(group).astype(np.float64)
        if names[0] in group.products:
            a = group.products[names[0]]
        elif names[1] in group.products:
            b = group.products[names[1]]
        return (a + b if opcode == "fadd" else a - b).astype(dtype)

    return evaluate


@instruction("shl", "lshr", "ashr")
def shift(opcode: str, text: str) -> Evaluate:
    kind, left, right = _two(text)
    signed = DTYPES[element(kind)[0]]
    unsigned = UNSIGNED[BITS[element(kind)[0]]]
    if opcode == "ashr":
        return lambda group: left(group) >> right(group)
    function = np.left_shift if opcode == "shl" else np.right_shift
    return lambda group: function(left(group).view(unsigned), right(group).view(unsigned)).view(signed)


@instruction("sdiv", "udiv", "srem", "urem")
def divide(opcode: str, text: str) -> Evaluate:
    """Towards zero; lanes that divide by zero get something."""
    kind, left, right = _two(text)
    name = element(kind)[0]
    dtype = DTYPES[name] if opcode[0] == "s" else UNSIGNED[BITS[name]]

    def evaluate(group: Any) -> Array:
        a, b = (operand(group).view(dtype).astype(object) for operand in (left, right))
        a, b = np.broadcast_arrays(a, np.where(b == 0, 1, b))
        quotient = abs(a) // abs(b) * np.where((a < 0) != (b < 0), -1, 1)
        result = quotient if opcode.endswith("div") else a - quotient * b
        return result.astype(dtype).view(DTYPES[name])

    return evaluate


@instruction("fneg", "freeze")
def unary(opcode: str, text: str) -> Evaluate:
    _, value = typed(text)
    return (lambda group: -value(group)) if opcode == "fneg" else value


@instruction("icmp")
def compare_integers(opcode: str, text: str) -> Evaluate:
    relation, rest = text.split(" ", 1)
    kind, left, right = _two(rest)
    function, name = _SIGNED[relation], element(kind)[0]
    if relation[0] != "u":
        return lambda group: function(left(group), right(group))
    unsigned = UNSIGNED[BITS[name]]
    return lambda group: function(left(group).view(unsigned), right(group).view(unsigned))


@instruction("fcmp")
def compare_floats(opcode: str, text: str) -> Evaluate:
    """Ordered relations are false where one is NaN, unordered ones true."""
    relation, rest = text.split(" ", 1)
    _, left, right = _two(rest)

    def evaluate(group: Any) -> Array:
        a, b = left(group), right(group)
        nan = np.isnan(a) | np.isnan(b)
        if relation in ("uno", "ord"):
            return nan if relation == "uno" else ~nan
        found = a != b if relation[1:] == "ne" else _FLOATS[relation[1:]](a, b)
        return found | nan if relation[0] == "u" else found & ~nan

    return evaluate


@instruction("select")
def select(opcode: str, text: str) -> Evaluate:
    (kind_of_condition, condition), (kind, first), (_, second) = map(typed, split(text))
    spread = element(kind)[1] and not element(kind_of_condition)[1]

    def evaluate(group: Any) -> Array:
        chosen = condition(group)[:, None] if spread else condition(group)
        return np.where(chosen, first(group), second(group))

    return evaluate


@instruction("zext", "sext", "trunc", "bitcast", "fptrunc", "fpext", "sitofp", "fptosi")
def convert(opcode: str, text: str) -> Evaluate:
    match = re.match(rf"({TYPE}) (.+) to ({TYPE})$", text)
    if match is None:
        raise ValueError("kind of conversion")
    value = reader(match[1], match[2])
    (source, _), (target, count) = element(match[1]), element(match[3])
    dtype = DTYPES[target]
    if opcode == "trunc" and target not in BITS:
        mask = np.int32(2 ** int(target[1:]) - 1)
        return lambda group: value(group).astype(np.int32) & mask
    if opcode == "zext" and source != "i1" and source in BITS:
        return lambda group: value(group).view(UNSIGNED[BITS[source]]).astype(dtype)
    if opcode == "sext" and source == "i1":
        return lambda group: -value(group).astype(dtype)
    if opcode == "trunc" and target == "i1":
        return lambda group: (value(group) & 1).astype(bool)
    if opcode == "fptrunc" and target == "bfloat":
        return lambda group: to_bf16(value(group))
    if opcode == "fpext" and source == "bfloat":
        return lambda group: from_bf16(value(group)).astype(dtype)
    if opcode != "bitcast":
        return lambda group: value(group).astype(dtype)

    def bitcast(group: Any) -> Array:
        bits = np.ascontiguousarray(value(group))
        bits = bits.reshape(len(bits), -1).view(dtype)
        return bits if count else bits[:, 0]

    return bitcast


@intrinsic("bitreverse")
def reverse_bits(operands: list[Reader], name: str) -> Evaluate:
    width = int(name.rsplit(".i", 1)[1])

    def evaluate(group: Any) -> Array:
        bits = operands[0](group)
        return sum((bits >> place & 1) << (width - 1 - place) for place in range(width))

    return evaluate


@intrinsic("exp2", "log2", "sqrt", "fabs", "abs")
def function(operands: list[Reader], name: str) -> Evaluate:
    chosen = {"exp2": np.exp2, "log2": np.log2, "sqrt": np.sqrt, "fabs": np.abs, "abs": np.abs}[
        name.split(".")[0]
    ]
    if name.startswith(("exp2", "log2")):
        return lambda group: chosen(operands[0](group).astype(np.float64)).astype(np.float32)
    return lambda group: chosen(operands[0](group))


@intrinsic("maxnum", "minnum", "smax", "smin")
def extreme(operands: list[Reader], name: str) -> Evaluate:
    chosen = {"maxnum": np.fmax, "minnum": np.fmin, "smax": np.maximum, "smin": np.minimum}[
        name.split(".")[0]
    ]
    return lambda group: chosen(operands[0](group), operands[1](group))


@intrinsic("fma", "fmuladd")
def multiply_add(operands: list[Reader], name: str) -> Evaluate:
    a, b, c = operands
    return lambda group: (a(group).astype(np.float64) * b(group) + c(group)).astype(np.float32)
