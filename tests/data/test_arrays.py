"""Arrays in .npy and .npz files: typed, bounded, and one line that names the file where they are damaged."""

import io
import struct
import zipfile

import numpy as np
import pytest
import torch

from mvar_models.data.arrays import npz_comment, npz_names, open_npz, read_array, read_npy

CODES = np.dtype("<u2")


def npy(header: bytes, data: bytes = b"\0" * 64, version: bytes = b"\x01\0") -> bytes:
    return b"\x93NUMPY" + version + struct.pack("<H", len(header)) + header + data


def described(descr: str = "'<f8'", order: str = "False", shape: str = "(2,)", more: str = "") -> bytes:
    return npy(f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}{more}}}\n".encode())


def zipped(path, content, compression=zipfile.ZIP_STORED, name="mu.npy"):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(name, content)
    return path


def saved(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def patched(path, signature, offset, value):
    """Overwrite two bytes at `offset` of every zip header with that signature."""
    content = bytearray(path.read_bytes())
    at = content.find(signature)
    while at >= 0:
        content[at + offset : at + offset + 2] = struct.pack("<H", value)
        at = content.find(signature, at + 4)
    path.write_bytes(bytes(content))
    return path


def test_arrays_keep_type_and_shape(tmp_path):
    file = tmp_path / "arrays.npz"
    np.savez(file, count=np.array(3), name=np.array("digits"), mu=np.arange(3.0))
    assert npz_names(file) == {"count", "name", "mu"}
    assert int(read_array(file, "count", "iu", ())) == 3
    assert str(read_array(file, "name", "SU")) == "digits"
    assert read_array(file, "mu", "f", (None,)).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "content, said",
    [
        (npy(b"-" * 9000), "header"),
        (npy(b"(" * 9000), "header"),
        (npy(b"{" * 60000), "header"),
        (npy(b""), "header"),
        (npy(b"'abc"), "header"),
        (npy(b"\xff\xfe"), "header"),
        (npy(b"{}", version=b"\x03\0"), r"version 3\.0"),
        (npy(b"{}", version=b"\x09\0"), "version"),
        (described(shape="(2.0,)"), "header"),
        (described(shape="(-1,)"), r"shape is \(-1,\)"),
        (described(shape="(10**99,)"), "header"),
        (described(shape="(" + "9" * 99 + ",)"), "shape is"),
        (described(shape="(4611686018427387903,)"), "cut off"),
        (described(shape="3"), "header"),
        (described(descr="'|O'"), "pickled objects"),
        (described(descr="'V0'"), "no numbers"),
        (described(descr="3"), "header"),
        (described(descr="'<M8[s]'"), "must be"),
        (described(order="True", shape="(2, 2)"), "Fortran"),
        (described(order="'x'"), "header"),
        (described(more=", 'x': 1"), "header"),
        (described(shape="(9,)"), "cut off: 8 bytes"),
        (b"", r"no \.npy"),
        (b"PK", r"no \.npy"),
    ],
    ids=range(24),
)
def test_damaged_headers_are_one_line(tmp_path, content, said):
    file = zipped(tmp_path / "a.npz", content)
    with pytest.raises(ValueError, match=said) as raised:
        read_array(file, "mu")
    assert str(raised.value).startswith(str(file)) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_damaged_values_are_one_line(tmp_path, compression):
    values = np.random.default_rng(0).random(2000)
    file = zipped(tmp_path / "a.npz", saved(values), compression)
    assert np.array_equal(read_array(file, "mu"), values)
    content = bytearray(file.read_bytes())
    for start in range(60, 8000, 400):
        file.write_bytes(content[:start] + b"\xff\x00\xff" * 5 + content[start + 15 :])
        with pytest.raises(ValueError, match="damaged") as raised:
            read_array(file, "mu")
        assert str(raised.value).startswith(str(file))


@pytest.mark.parametrize(
    "offset, value, said",
    [(6, 1, "encrypted"), (8, 99, "compression"), (4, 250, "version")],
    ids=["encrypted", "compression 99", "version 25.0"],
)
def test_archives_of_other_kinds_are_one_line(tmp_path, offset, value, said):
    file = zipped(tmp_path / "a.npz", saved(np.zeros(3)))
    patched(file, b"PK\x01\x02", offset + 2, value)
    if said != "version":
        patched(file, b"PK\x03\x04", offset, value)
    with pytest.raises(ValueError, match=rf"(?i)a\.npz is no \.npz.*{said}"):
        read_array(file, "mu")


def test_a_compressed_member_beyond_reason_is_refused(tmp_path):
    file = zipped(tmp_path / "a.npz", described(shape="(1 << 40,)") + b"\0" * (1 << 20), zipfile.ZIP_DEFLATED)
    content = bytearray(file.read_bytes())
    at = content.find(b"PK\x01\x02")
    content[at + 24 : at + 28] = struct.pack("<I", 0xFFFFFFF0)
    file.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="claims 4,294,967,280 bytes"):
        read_array(file, "mu")


@pytest.mark.parametrize("comment", [b"[" * 60_000, b"\xff", b"1", b"", b'{"per_class": 1, "per_class": 2}'])
def test_other_comments_say_nothing(tmp_path, comment):
    file = zipped(tmp_path / "a.npz", saved(np.zeros(3)))
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = comment
    assert npz_comment(file) == {}


def test_a_readers_own_error_is_not_renamed(tmp_path):
    file = zipped(tmp_path / "a.npz", saved(np.zeros(3)))
    with pytest.raises(KeyError, match="mine"), open_npz(file):
        raise KeyError("mine")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x" * 99,
        npy(b"-" * 9000),
        saved(np.zeros((2, 3), CODES))[:-1],
        saved(np.zeros((2, 3), np.int64)),
        saved(np.zeros((2, 4), CODES)),
        saved(np.array(3, CODES)),
        b"PK\x03\x04" + b"\0" * 60,
    ],
    ids=range(8),
)
def test_other_npy_files_are_one_line(tmp_path, content):
    file = tmp_path / "a.npy"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npy (is no \.npy|must be \(any, 3\) of uint16)"):
        read_npy(file, CODES, (None, 3))
    np.save(file, np.ones((2, 3), CODES))
    with torch.device("meta"):  # somebody's default
        assert read_npy(file, CODES, (None, 3)).tolist() == [[1] * 3] * 2
