"""Elements of vectors."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from emulated_amd.table import Evaluate, instruction
from emulated_amd.values import Array, split, typed


@instruction("extractelement")
def extract(opcode: str, text: str) -> Evaluate:
    vector, place = split(text)
    (_, value), index = typed(vector), int(place.split()[1])
    return lambda group: value(group)[:, index]


@instruction("insertelement")
def insert(opcode: str, text: str) -> Evaluate:
    (_, vector), (_, new) = map(typed, split(text)[:2])
    index = int(split(text)[2].split()[1])

    def evaluate(group: Any) -> Array:
        old, value = vector(group), new(group)
        result = np.array(np.broadcast_to(old, (max(len(old), len(value)), old.shape[1])))
        result[:, index] = value
        return result

    return evaluate


@instruction("shufflevector")
def shuffle(opcode: str, text: str) -> Evaluate:
    first, second, mask = split(text)
    (_, left), (_, right), places = typed(first), typed(second), _places(mask)

    def evaluate(group: Any) -> Array:
        a, b = left(group), right(group)
        lanes = max(len(a), len(b))
        both = [np.broadcast_to(each, (lanes, each.shape[1])) for each in (a, b)]
        return np.concatenate(both, axis=1)[:, places]

    return evaluate


def _places(mask: str) -> list[int]:
    """ "<2 x i32> <i32 0, i32 3>" -> [0, 3]; anything where there is poison."""
    match = re.match(r"<(\d+) x i32> (.+)$", mask)
    if match is None:
        raise ValueError("mask of shufflevector")
    if match[2] == "zeroinitializer":
        return [0] * int(match[1])
    if match[2].startswith("splat"):
        return [int(re.findall(r"\d+", match[2])[-1])] * int(match[1])
    return [0 if part.endswith("poison") else int(part.split()[1]) for part in split(match[2][1:-1])]
