"""The wire format: fields of every kind, and bytes that are none."""

import struct

import pytest

from mvar_models.evaluation.features.protobuf import (
    BYTES,
    EIGHT_BYTES,
    FOUR_BYTES,
    VARINT,
    Malformed,
    as_message,
    as_text,
    fields,
    last,
)

from tf_graph_cases import field, varint


def read(data: bytes):
    return [
        (number, kind, value if isinstance(value, int) else bytes(value))
        for number, kind, value in fields(memoryview(data))
    ]


def test_every_kind_of_field_is_read():
    data = (
        field(1, 0)
        + field(2, 2**64 - 1)
        + field(3, "name")
        + field(4, 0.5)
        + varint(5 << 3 | EIGHT_BYTES)
        + struct.pack("<d", 0.25)
        + field(4000, b"")
    )
    assert read(data) == [
        (1, VARINT, 0),
        (2, VARINT, 2**64 - 1),
        (3, BYTES, b"name"),
        (4, FOUR_BYTES, struct.pack("<f", 0.5)),
        (5, EIGHT_BYTES, struct.pack("<d", 0.25)),
        (4000, BYTES, b""),
    ]


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"\x08\xff", "cut short inside a number"),
        (b"\x80", "cut short inside a number"),
        (b"\x0a", "cut short inside a number"),
        (b"\x0a\x05abcd", "5 bytes are announced and 4 follow"),
        (b"\x0d\x00\x00\x00", "4 bytes are announced and 3 follow"),
        (b"\x09" + bytes(7), "8 bytes are announced and 7 follow"),
        (b"\x0a" + varint(2**63) + b"abc", "9,223,372,036,854,775,808 bytes are announced"),
        (b"\x08" + b"\xff" * 10 + b"\x01", "more than ten bytes"),
        (b"\x02\x01a", "field of number 0"),
        (b"\x0b", "wire type 3"),
        (b"\x0e", "wire type 6"),
    ],
)
def test_what_is_no_message_is_refused(data, reason):
    with pytest.raises(Malformed, match=reason):
        read(data)


def test_every_prefix_is_read_or_refused():
    """Nothing but Malformed comes out of a file that is cut anywhere."""
    data = field(1, 300) + field(2, "a name") + field(3, 1.5) + field(2, field(1, 7))
    whole = 0
    for length in range(len(data)):
        try:
            read(data[:length])
            whole += 1
        except Malformed:
            pass
    assert whole == 4  # before each field


def test_the_last_field_counts():
    data = memoryview(field(1, 3) + field(2, 8) + field(1, 4))
    assert last(data, 1, VARINT) == 4
    assert last(data, 3, VARINT) is None
    with pytest.raises(Malformed, match="wire type 0 where 2 was expected"):
        last(data, 1, BYTES)


def test_names_and_messages_are_checked():
    assert as_text(memoryview("größe".encode())) == "größe"
    assert as_text(memoryview(b"a" * 1024)) == "a" * 1024
    with pytest.raises(Malformed, match="1,025 bytes"):
        as_text(memoryview(b"a" * 1025))
    with pytest.raises(Malformed, match="no text"):
        as_text(memoryview(b"\xff\xfe"))
    for value in (3, None):
        with pytest.raises(Malformed, match="message was expected"):
            as_message(value)
