"""Frozen TensorFlow graphs, encoded here from the definition of the format: the reader's counterpart."""

import struct

import numpy as np

VARINT, BYTES, FOUR_BYTES = 0, 2, 5
FLOAT = 1


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value) -> bytes:
    """A field: an int as a varint, a float as four bytes, a str or bytes with its length."""
    if isinstance(value, bool | int):
        return varint(number << 3 | VARINT) + varint(int(value))
    if isinstance(value, float):
        return varint(number << 3 | FOUR_BYTES) + struct.pack("<f", value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | BYTES) + varint(len(data)) + data


def shape(sizes) -> bytes:
    return b"".join(field(2, field(1, int(size))) for size in sizes)


def tensor(values: np.ndarray, how: str = "content", dtype: int = FLOAT) -> bytes:
    """A TensorProto: its values as `content`, as a `packed` list or as a list `unpacked` into fields."""
    flat = np.ascontiguousarray(values, dtype="<f4")
    head = field(1, dtype) + field(2, shape(values.shape))
    if how == "content":
        return head + field(4, flat.tobytes())
    if how == "packed":
        return head + field(5, flat.tobytes())
    return head + b"".join(field(5, float(value)) for value in flat.reshape(-1))


def attribute(name: str, value: bytes) -> bytes:
    """An entry of a node's map: the name, and an AttrValue."""
    return field(5, field(1, name) + field(2, value))


def node(name: str, op: str, inputs=(), attributes=b"") -> bytes:
    """A node as a field of the graph."""
    body = field(1, name) + field(2, op) + b"".join(field(3, each) for each in inputs) + attributes
    return field(1, body)


def constant(name: str, values: np.ndarray, how: str = "content") -> bytes:
    return node(
        name,
        "Const",
        attributes=attribute("dtype", field(6, FLOAT)) + attribute("value", field(8, tensor(values, how))),
    )


def batch_norm(scope: str, epsilon: float = 0.001, scale: bool = True) -> bytes:
    """The operator, whose inputs are constants below its own name."""
    parts = ("moving_mean", "moving_variance", "beta", "gamma")
    inputs = (f"{scope.rpartition('/')[0]}/Conv2D", *(f"{scope}/{part}" for part in parts))
    attributes = (
        attribute("T", field(6, FLOAT))
        + attribute("variance_epsilon", field(4, epsilon))
        + attribute("scale_after_normalization", field(5, scale))
    )
    return node(scope, "BatchNormWithGlobalNormalization", inputs, attributes)


def versions(producer: int = 8) -> bytes:
    """What follows the nodes in every graph."""
    return field(4, field(1, producer))
