"""Read .npy files and the members of .npz files that anybody may have written.

A header is read by NumPy, within bounds and without unpickling; values come only after their type, shape and
size have been found right. Whatever a damaged file makes zipfile and NumPy raise becomes one line.
"""

from __future__ import annotations

import contextlib
import math
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from mvar_models.files import damage_named
from mvar_models.records import parse_json

# Compressed members beyond this size and ratio are refused: a megabyte can otherwise fill the memory.
_LARGE = 1 << 28
_LARGEST_RATIO = 50
_Shape = tuple[int | None, ...]


@contextlib.contextmanager
def open_npz(file: Path) -> Iterator[zipfile.ZipFile]:
    """Open an .npz for the block.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no .npz, or cut off.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file")
    with damage_named(file):
        archive = zipfile.ZipFile(file)
    with archive:
        yield archive


def open_member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """Open the member of an array.

    Raises:
        ValueError: it is encrypted, compressed beyond reason, or damaged.
    """
    with damage_named(archive.filename):
        info = archive.getinfo(f"{name}.npy")
        size = os.path.getsize(str(archive.filename))
        ratio = 1 if info.compress_type == zipfile.ZIP_STORED else _LARGEST_RATIO
        if info.file_size > max(_LARGE if ratio > 1 else 0, ratio * size):
            raise ValueError(f"{name} claims {info.file_size:,} bytes in a file of {size:,}")
        return archive.open(info)


def npz_names(file: Path) -> set[str]:
    """Return the names of an .npz's arrays; see `open_npz` for the errors."""
    with open_npz(file) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}


def npz_comment(file: Path) -> dict[str, Any]:
    """Return what our .npz files hold in the comment of their archive: a JSON object, else nothing."""
    with contextlib.suppress(ValueError), open_npz(file) as archive:
        values = parse_json(archive.comment, str(file))
        return values if isinstance(values, dict) else {}
    return {}


def read_array(file: Path, name: str, kinds: str = "biufcSU", shape: _Shape | None = None) -> np.ndarray:
    """Read one array of an .npz whole, without unpickling.

    Args:
        file: The .npz.
        name: The array.
        kinds: Letters of the allowed `dtype.kind`.
        shape: The shape that it must have, None for any; a None in it allows any length.

    Raises:
        ValueError: it holds something else, or is damaged.
    """
    what = f"{file}: {name}"
    with open_npz(file) as archive, open_member(archive, name) as entry:
        actual, dtype = read_header(entry, what)
        if dtype.kind not in kinds or (shape is not None and not _fits(actual, shape)):
            wanted = "" if shape is None else f"{_written(shape)} of "
            raise ValueError(
                f"{what} must be {wanted}{_kind_names(kinds)}, got {_written(actual)} of {dtype}"
            )
        values = read_bytes(entry, math.prod(actual) * dtype.itemsize, what)
        return np.frombuffer(values, dtype).reshape(actual)


def read_npy(file: Path, dtype: np.dtype[Any], shape: _Shape) -> np.ndarray:
    """Map an .npy file into memory; the file does not stay open.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no .npy of that type and shape (None for any length), or damaged.
    """
    with file.open("rb") as opened:
        actual, kind = read_header(opened, str(file))
        start = opened.tell()
    if kind != dtype or not _fits(actual, shape):
        raise ValueError(f"{file} must be {_written(shape)} of {dtype}, got {_written(actual)} of {kind}")
    size = start + math.prod(actual) * dtype.itemsize
    with damage_named(file, "no .npy, or is cut off or damaged"):
        if file.stat().st_size < size:
            raise ValueError(f"{size - file.stat().st_size:,} bytes are missing")
        # Not a memmap, which keeps the file open: a folder may have more files than a process may open.
        mapped = torch.from_file(str(file), size=size, dtype=torch.uint8, device="cpu").numpy()
    values = mapped[start:].view(dtype).reshape(actual)
    values.flags.writeable = False
    return values


def read_header(entry: IO[bytes], what: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Read a .npy header; the entry is at the data afterwards.

    Raises:
        ValueError: it is damaged, or what follows is pickled or not in C order.
    """
    with damage_named(what, "no .npy, or has a damaged header"):
        version = np.lib.format.read_magic(entry)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"it is of version {version[0]}.{version[1]}")
        read = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(entry)
        if not all(0 <= side < 1 << 62 for side in shape):
            raise ValueError(f"its shape is {_written(shape)}")
    if dtype.hasobject:
        raise ValueError(f"{what} holds pickled objects, which could run code when read; refused")
    if fortran and len(shape) > 1:
        raise ValueError(f"{what} is in Fortran order; save it with numpy.ascontiguousarray")
    if not dtype.itemsize or dtype.subdtype is not None:
        raise ValueError(f"{what} is of {dtype}, which holds no numbers and no text")
    return shape, dtype


def read_bytes(entry: IO[bytes], count: int, what: str) -> bytes:
    """Read exactly `count` bytes.

    Raises:
        ValueError: there are fewer, or they are damaged.
    """
    with damage_named(what, "cut off or damaged"):
        values = entry.read(count)
    if len(values) < count:
        raise ValueError(f"{what} is cut off: {count - len(values):,} bytes are missing")
    return values


def _fits(actual: tuple[int, ...], wanted: _Shape) -> bool:
    return len(actual) == len(wanted) and all(side in (None, length) for side, length in zip(wanted, actual))


def _written(shape: _Shape) -> str:
    sides = ["any" if side is None else str(side)[:20] for side in shape]
    return f"({', '.join(sides)}{',' * (len(sides) == 1)})"


def _kind_names(kinds: str) -> str:
    names = {"i": "whole numbers", "f": "numbers", "U": "text", "b": "truth values"}
    return " or ".join(name for kind, name in names.items() if kind in kinds)
