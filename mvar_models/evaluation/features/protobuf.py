"""The wire format of protocol buffers: a message is numbered fields, and a field may be a message.

Only what a reader of strangers' files needs. Messages are slices of the file, so nothing is copied, and every
length is checked before it is used.
"""

from __future__ import annotations

from collections.abc import Iterator

VARINT, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5
Value = int | memoryview

_LONGEST_NAME = 1024


class Malformed(ValueError):
    """What is wrong with the bytes, as the end of a sentence; the caller names the file."""


def fields(message: memoryview) -> Iterator[tuple[int, int, Value]]:
    """Yield number, wire type and value of each field: an int for a varint, else the bytes.

    Raises:
        Malformed: the bytes end early, or are no message.
    """
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise Malformed("has a field of number 0")
        if kind == VARINT:
            value, at = _varint(message, at)
            yield number, kind, value
            continue
        if kind == BYTES:
            size, at = _varint(message, at)
        elif kind in (EIGHT_BYTES, FOUR_BYTES):
            size = 8 if kind == EIGHT_BYTES else 4
        else:
            raise Malformed(f"has a field of wire type {kind}")
        if size > len(message) - at:
            raise Malformed(f"is cut short: {size:,} bytes are announced and {len(message) - at:,} follow")
        yield number, kind, message[at : at + size]
        at += size


def last(message: memoryview, wanted: int, kind: int) -> Value | None:
    """Return the last field of that number, which is the one that counts; None if there is none."""
    found: Value | None = None
    for number, actual, value in fields(message):
        if number == wanted:
            if actual != kind:
                raise Malformed(f"has wire type {actual} where {kind} was expected")
            found = value
    return found


def as_message(value: Value | None) -> memoryview:
    """Return the bytes of a field that holds a message."""
    if not isinstance(value, memoryview):
        raise Malformed("has a number where a message was expected")
    return value


def as_text(value: Value | None) -> str:
    """Return a field that holds a name."""
    data = as_message(value)
    if len(data) > _LONGEST_NAME:
        raise Malformed(f"has a name of {len(data):,} bytes")
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError:
        raise Malformed("has a name that is no text") from None


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Return the number at a position, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise Malformed("is cut short inside a number")
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise Malformed("has a number of more than ten bytes")
