"""Reading the constants of a frozen TensorFlow graph without TensorFlow.

This decodes names, operators, scalar attributes and float32 constants, and skips everything else. Nothing of
the file is executed, the file is mapped instead of read, and what is kept of it is bounded whatever it
claims. Field numbers are those of graph.proto, node_def.proto, attr_value.proto, tensor.proto and
tensor_shape.proto in tensorflow/core/framework.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import numpy as np

from mvar_models.checkpoints.read_tensors import refuse_impostors
from mvar_models.evaluation.features.protobuf import (
    BYTES,
    FOUR_BYTES,
    VARINT,
    Malformed,
    Value,
    as_message,
    as_text,
    fields,
    last,
)

_DT_FLOAT = 1
# The graph of Inception has about 1,000 nodes and 15,000 fields; what claims many more is no such graph.
_MOST_FIELDS = 300_000


@dataclass(frozen=True)
class Node:
    """An operator of the graph.

    Attributes:
        op: Its kind, for instance "Const".
        attributes: Name -> the undecoded AttrValue.
    """

    op: str
    attributes: dict[str, memoryview] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """A frozen graph.

    Attributes:
        path: The file, for error messages.
        nodes: Name -> node.
    """

    path: Path
    nodes: dict[str, Node]

    def node(self, name: str, op: str) -> Node:
        """Return a node.

        Raises:
            ValueError: there is no node of that name, or it is another operator.
        """
        found = self.nodes.get(name)
        if found is None:
            raise ValueError(
                f"{self.path} has no node {name!r}: it is cut short or another graph; "
                "download or copy it again"
            )
        if found.op != op:
            raise ValueError(f"{self.path} is another graph: node {name!r} is {found.op!r}, expected {op!r}")
        return found

    def constant(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Return a copy of a float32 constant.

        Raises:
            ValueError: there is no such constant, or its type, shape or number of values is another.
        """
        encoded = self.node(name, "Const").attributes.get("value", memoryview(b""))
        try:
            return _tensor(last(encoded, 8, BYTES), shape)
        except Malformed as error:
            raise ValueError(f"{self.path}: constant {name!r} {error}") from None

    def number(self, name: str, op: str, attribute: str) -> float:
        """Return a float attribute of a node; see `node` for the errors."""
        value = self._attribute(name, op, attribute, 4, FOUR_BYTES)
        return 0.0 if value is None else float(struct.unpack("<f", as_message(value))[0])

    def flag(self, name: str, op: str, attribute: str) -> bool:
        """Return a boolean attribute of a node; see `node` for the errors."""
        return bool(self._attribute(name, op, attribute, 5, VARINT))

    def _attribute(self, name: str, op: str, attribute: str, number: int, kind: int) -> Value | None:
        encoded = self.node(name, op).attributes.get(attribute)
        if encoded is None:
            raise ValueError(f"{self.path} is another graph: node {name!r} has no attribute {attribute!r}")
        try:
            return last(encoded, number, kind)
        except Malformed as error:
            raise ValueError(f"{self.path}: attribute {attribute!r} of node {name!r} {error}") from None


def read_graph(path: Path) -> Graph:
    """Map a frozen graph and list its nodes. The file stays mapped while the graph lives.

    Raises:
        ValueError: in one line, what the file is instead.
    """
    with path.open("rb") as file:
        refuse_impostors(path, file.read(512))
        mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    try:
        return Graph(path, _Reader().nodes(mapped))
    except Malformed as error:
        raise ValueError(
            f"{path} is no complete TensorFlow graph: it {error}; download or copy it again"
        ) from None


class _Reader:
    """Decodes the nodes of one file, and counts the fields that it has seen."""

    def __init__(self) -> None:
        self._seen = 0

    def nodes(self, graph: memoryview) -> dict[str, Node]:
        found: dict[str, Node] = {}
        for number, value in self._fields(graph):
            if number != 1:  # versions and functions
                continue
            name, node = self._node(as_message(value))
            if name in found:
                raise Malformed(f"has two nodes {name!r}")
            found[name] = node
        return found

    def _node(self, message: memoryview) -> tuple[str, Node]:
        name, op = "", ""
        attributes: dict[str, memoryview] = {}
        for number, value in self._fields(message):
            if number == 1:
                name = as_text(value)
            elif number == 2:
                op = as_text(value)
            elif number == 5:
                key, encoded = "", memoryview(b"")
                for part, inner in self._fields(as_message(value)):
                    if part == 1:
                        key = as_text(inner)
                    elif part == 2:
                        encoded = as_message(inner)
                attributes[key] = encoded
        return name, Node(op, attributes)

    def _fields(self, message: memoryview) -> Iterator[tuple[int, Value]]:
        for number, _, value in fields(message):
            self._seen += 1
            if self._seen > _MOST_FIELDS:
                raise Malformed(f"has more than {_MOST_FIELDS:,} fields")
            yield number, value


def _tensor(value: Value | None, shape: tuple[int, ...]) -> np.ndarray:
    """Decode a TensorProto. The expected shape bounds what is allocated, not the one that the file claims."""
    if value is None:
        raise Malformed("has no value")
    size = 4 * prod(shape)
    dtype: Value = 0
    dims: list[int] = []
    content: memoryview | None = None
    listed = bytearray()
    for number, kind, inner in fields(as_message(value)):
        if number == 1:
            dtype = inner
        elif number == 2:
            dims = _dims(as_message(inner), len(shape))
        elif number == 4:
            content = as_message(inner)
        elif number == 5 and kind in (BYTES, FOUR_BYTES):  # packed, or one value a field
            part = as_message(inner)
            if len(listed) + len(part) > size:
                raise Malformed(f"has more values than its shape {list(shape)}")
            listed += part
    if dtype != _DT_FLOAT:
        raise Malformed(f"has type {dtype}, expected {_DT_FLOAT} (float32)")
    if tuple(dims) != shape:
        raise Malformed(f"has shape {dims}, expected {list(shape)}")
    if content is not None and len(content) != size:
        raise Malformed(f"has {len(content):,} bytes of values, expected {size:,}")
    if content is None and (not listed or len(listed) % 4):
        raise Malformed(f"has {len(listed):,} bytes of values, expected {size:,}")
    values = np.frombuffer(listed if content is None else content, dtype="<f4").astype(np.float32)
    # A list that is too short stands for its last value repeated, as in all of TensorFlow.
    missing = prod(shape) - len(values)
    return (
        np.concatenate([values, np.full(missing, values[-1])]).reshape(shape)
        if missing
        else values.reshape(shape)
    )


def _dims(message: memoryview, most: int) -> list[int]:
    """Decode a TensorShapeProto of at most `most` dimensions."""
    found: list[int] = []
    for number, _, value in fields(message):
        if number == 2:
            size = last(as_message(value), 1, VARINT)
            found.append(size if isinstance(size, int) else 0)
            if len(found) > most:
                raise Malformed(f"has more than {most} dimensions")
    return found
