"""Constants of a frozen graph: read back exactly, and whatever else a file holds is refused in one line."""

import numpy as np
import pytest

from mvar_models.evaluation.features.graph_def import read_graph

from tf_graph_cases import attribute, batch_norm, constant, field, node, shape, tensor, varint, versions


def write(tmp_path, *parts: bytes):
    path = tmp_path / "graph.pb"
    path.write_bytes(b"".join(parts))
    return path


def values_of(seed, *sizes):
    return np.random.default_rng(seed).standard_normal(sizes).astype(np.float32)


@pytest.mark.parametrize("how", ["content", "packed", "unpacked"])
@pytest.mark.parametrize("sizes", [(3,), (2, 3, 4, 5), (1, 1, 7, 2), ()])
def test_constants_are_read_back_exactly(tmp_path, seed, how, sizes):
    first, second = values_of(seed, *sizes), values_of(seed + 1, 4)
    path = write(
        tmp_path, constant("a/b", first, how), node("c", "Relu", ["a/b"]), constant("d", second), versions()
    )
    graph = read_graph(path)
    assert list(graph.nodes) == ["a/b", "c", "d"]
    found = graph.constant("a/b", sizes)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, first)
    np.testing.assert_array_equal(graph.constant("d", (4,)), second)


def test_a_constant_outlives_its_file(tmp_path):
    path = write(tmp_path, constant("a", np.ones((2, 2), np.float32)))
    found = read_graph(path).constant("a", (2, 2))
    path.write_bytes(bytes(100))
    found += 1
    assert (found == 2).all()


def test_a_short_list_repeats_its_last_value(tmp_path):
    value = field(1, 1) + field(2, shape([2, 3])) + field(5, 1.5) + field(5, -2.0)
    path = write(tmp_path, node("a", "Const", attributes=attribute("value", field(8, value))))
    np.testing.assert_array_equal(read_graph(path).constant("a", (2, 3)), [[1.5, -2, -2], [-2, -2, -2]])


def test_attributes_are_read(tmp_path):
    graph = read_graph(write(tmp_path, batch_norm("x", 0.25, scale=True), batch_norm("y", 0.5, scale=False)))
    op = "BatchNormWithGlobalNormalization"
    assert graph.number("x", op, "variance_epsilon") == 0.25
    assert graph.flag("x", op, "scale_after_normalization")
    assert not graph.flag("y", op, "scale_after_normalization")
    with pytest.raises(ValueError, match="has no attribute 'other'"):
        graph.number("x", op, "other")
    with pytest.raises(ValueError, match="attribute 'T' of node 'x' has wire type 0 where 5"):
        read_graph(write(tmp_path, node("x", op, attributes=attribute("T", field(4, 3))))).number(
            "x", op, "T"
        )


def test_absent_scalars_are_zero(tmp_path):
    """proto3 does not write a field that has its default."""
    graph = read_graph(write(tmp_path, node("x", "Op", attributes=attribute("a", b""))))
    assert graph.number("x", "Op", "a") == 0
    assert graph.flag("x", "Op", "a") is False


def wrapped(value: bytes) -> bytes:
    return node("a", "Const", attributes=attribute("value", value))


GOOD = tensor(np.zeros((2, 3), np.float32))


@pytest.mark.parametrize(
    "part, reason",
    [
        (wrapped(b""), "has no value"),
        (node("a", "Const"), "has no value"),
        (node("a", "Variable"), "node 'a' is 'Variable', expected 'Const'"),
        (node("b", "Const"), "no node 'a'"),
        (wrapped(field(8, tensor(np.zeros((2, 3), np.float32), dtype=3))), "type 3, expected 1"),
        (wrapped(field(8, tensor(np.zeros((3, 2), np.float32)))), r"shape \[3, 2\], expected \[2, 3\]"),
        (wrapped(field(8, tensor(np.zeros(6, np.float32)))), r"shape \[6\], expected \[2, 3\]"),
        (wrapped(field(8, tensor(np.zeros((1, 2, 3), np.float32)))), "more than 2 dimensions"),
        (wrapped(field(8, field(1, 1) + field(2, shape([2**40, 2**40])))), r"expected \[2, 3\]"),
        (wrapped(field(8, field(1, 1) + field(2, shape([2, 3])))), "0 bytes of values, expected 24"),
        (
            wrapped(field(8, field(1, 1) + field(2, shape([2, 3])) + field(4, bytes(20)))),
            "20 bytes of values",
        ),
        (
            wrapped(field(8, field(1, 1) + field(2, shape([2, 3])) + field(4, bytes(28)))),
            "28 bytes of values",
        ),
        (wrapped(field(8, field(1, 1) + field(2, shape([2, 3])) + field(5, bytes(28)))), "more values than"),
        (wrapped(field(8, field(1, 1) + field(2, shape([2, 3])) + field(5, bytes(7)))), "7 bytes of values"),
        (wrapped(field(8, field(1, 1) + field(2, shape([2, 3])) + field(5, 1.0) * 7)), "more values than"),
        (wrapped(field(8, 5)), "wire type 0 where 2"),
        (wrapped(field(8, GOOD[:-5])), "cut short"),
    ],
)
def test_a_wrong_constant_is_one_line(tmp_path, part, reason):
    path = write(tmp_path, part, versions())
    with pytest.raises(ValueError, match=reason) as caught:
        read_graph(path).constant("a", (2, 3))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"node {\n  name: 'a'\n}\n" * 30, "text file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "LFS pointer"),
        (b"\x1f\x8b\x08\x00" + bytes(range(1, 200)), "no complete TensorFlow graph"),
        (b"PK\x03\x04" + bytes(100), "no complete TensorFlow graph"),
        (field(1, 5) + bytes(10), "a number where a message was expected"),
        (constant("a", np.ones(3, np.float32)) * 2, "two nodes 'a'"),
        (field(1, field(1, b"\xff\xff")), "a name that is no text"),
        (field(1, field(1, "n" * 2000)), "a name of 2,000 bytes"),
        (field(1, field(5, 3)), "a number where a message"),
        (varint(1 << 3 | 2) + varint(2**62), "cut short"),
        (field(4, 1) * 300_001, "more than 300,000 fields"),
        (field(1, field(3, "x") * 300_001), "more than 300,000 fields"),
    ],
)
def test_what_is_no_graph_is_one_line(tmp_path, data, reason):
    path = write(tmp_path, data)
    with pytest.raises(ValueError, match=reason) as caught:
        read_graph(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_graph_cut_anywhere_is_refused_or_lacks_the_constant(tmp_path):
    data = b"".join([constant("a", values_of(0, 5)), constant("b", values_of(1, 5), "unpacked"), versions()])
    for length in range(1, len(data) - len(versions())):
        with pytest.raises(ValueError, match=r"cut short|no node|text file"):
            read_graph(write(tmp_path, data[:length])).constant("b", (5,))


def test_flipped_bits_give_a_graph_or_one_line(tmp_path, seed):
    """No byte of a file leads to anything but values of the expected shape or a ValueError."""
    data = b"".join([constant("a", values_of(0, 5)), batch_norm("x"), versions()])
    rng = np.random.default_rng(seed)
    for _ in range(500):
        changed = bytearray(data)
        for at in rng.integers(0, len(data), 2):
            changed[at] ^= 1 << rng.integers(8)
        path = write(tmp_path, bytes(changed))
        try:
            found = read_graph(path).constant("a", (5,))
        except ValueError as error:
            lines = str(error).splitlines()
        else:
            lines = [""]
            assert found.shape == (5,)
        assert len(lines) == 1
