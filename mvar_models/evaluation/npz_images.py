"""Images in an .npz, read a piece at a time: OpenAI's file names, `mvar sample --npz`, and NumPy's own.

An .npz is a zip of .npy files. `numpy.load` would bring a whole member into memory (50,000 images of 256 px
are 10 GB) and, on request, run what a pickled member says. Here the header of the member is read, and then
the rows that are asked for; pickled objects are refused by their type.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

_IMAGE_NAMES = ("arr_0", "images")
_LABEL_NAMES = ("arr_1", "labels")
_SKIPPED_AT_A_TIME = 1 << 22
# Of an entry's header in a zip: 30 bytes, then its name and extra field, whose lengths stand at 26 and 28.
_LOCAL_HEADER = 30


class NpzImages:
    """The images of an .npz as a set, of which only the rows that are asked for are in memory.

    Args:
        file: The .npz, with the images as `arr_0` or `images`, and labels, if any, as `arr_1` or `labels`.

    Attributes:
        name: The file's name, for messages.
        shape: (N, H, W, 3).
        labels: (N,) int64, or None where the file has none.
        digest: SHA-256 of the file, 64 hex digits.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no .npz, it is cut off, or it has no images (N, H, W, 3) of uint8.
    """

    def __init__(self, file: str | os.PathLike[str]) -> None:
        self.path = Path(file)
        self.name = str(file)
        names = npz_names(self.path)
        found = [name for name in _IMAGE_NAMES if name in names]
        if not found:
            raise ValueError(
                f"{file} has no images: it must have arr_0 or images, "
                f"it has {', '.join(sorted(names)) or 'nothing'}"
            )
        self._member = found[0] + ".npy"
        with _opened(self.path) as archive, archive.open(self._member) as entry:
            self.shape, self._dtype = _header(entry, f"{file}: {found[0]}")
            self._begin = entry.tell()
            _check_images(self.shape, self._dtype, f"{file}: {found[0]}")
            info = archive.getinfo(self._member)
            self._stored = info.compress_type == zipfile.ZIP_STORED
            self._offset = info.header_offset
            self._row = int(np.prod(self.shape[1:]))
            if info.file_size != self._begin + self.shape[0] * self._row:
                raise ValueError(f"{file}: {found[0]} is cut off, it has {info.file_size:,} bytes")
        self.labels = self._read_labels(names)

    def __len__(self) -> int:
        return int(self.shape[0])

    @property
    def digest(self) -> str:
        """SHA-256 of the file."""
        return file_digest(self.path)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return int(self.shape[1]), int(self.shape[2])

    def ranges(self, starts: list[int], count: int) -> Iterator[np.ndarray]:
        """Yield the images (n, H, W, 3) from each start, `count` of them or what is left.

        Args:
            starts: First rows, ascending.
            count: Images in each range.
        """
        with self._reader() as (file, begin):
            place = 0
            for start in starts:
                wanted = begin + start * self._row
                place = self._move(file, place, wanted)
                rows = min(count, len(self) - start)
                values = _read(file, rows * self._row, self.name)
                place += len(values)
                yield np.frombuffer(values, np.uint8).reshape(rows, *self.shape[1:])

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the images of these rows, and the positions in `indices` that could be read: all."""
        order = np.argsort(indices, kind="stable")
        images = np.empty((len(indices), *self.shape[1:]), dtype=np.uint8)
        found = self.ranges([int(index) for index in np.unique(indices)], 1)
        last = -1
        for position in order:
            if indices[position] != last:
                last, image = int(indices[position]), next(found)[0]
            images[position] = image
        return images, np.arange(len(indices))

    @contextlib.contextmanager
    def _reader(self) -> Iterator[tuple[IO[bytes], int]]:
        """The open bytes, and where in them the first image begins."""
        with _opened(self.path) as archive:
            if self._stored:
                # Bytes as they are: straight from the file, where a seek costs nothing.
                with self.path.open("rb") as file:
                    file.seek(self._offset)
                    header = _read(file, _LOCAL_HEADER, self.name)
                    lengths = sum(int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
                    yield file, self._offset + _LOCAL_HEADER + lengths + self._begin
            else:
                with archive.open(self._member) as entry:
                    yield entry, self._begin

    def _move(self, file: IO[bytes], place: int, wanted: int) -> int:
        if self._stored:
            return file.seek(wanted)
        while place < wanted:  # what is compressed can only be read through
            place += len(_read(file, min(_SKIPPED_AT_A_TIME, wanted - place), self.name))
        return place

    def _read_labels(self, names: set[str]) -> np.ndarray | None:
        found = [name for name in _LABEL_NAMES if name in names]
        if found:
            labels = read_array(self.path, found[0])
            if labels.shape != (len(self),) or labels.dtype.kind not in "iu":
                raise ValueError(
                    f"{self.path}: {found[0]} must be ({len(self)},) whole numbers, one label per image, "
                    f"got {labels.shape} of {labels.dtype}"
                )
            return labels.astype(np.int64)
        with _opened(self.path) as archive, contextlib.suppress(ValueError, TypeError, AttributeError):
            # What `mvar sample --npz` notes there: images lie class by class.
            per_class = json.loads(archive.comment).get("per_class")
            if isinstance(per_class, int) and per_class > 0 and len(self) % per_class == 0:
                return np.arange(len(self)) // per_class
        return None


def npz_names(file: Path) -> set[str]:
    """Return the names of an .npz's arrays.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no .npz, or cut off.
    """
    with _opened(file) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}


def read_array(file: Path, name: str) -> np.ndarray:
    """Read one array of an .npz whole, without unpickling.

    Raises:
        ValueError: it holds pickled objects, or is cut off.
    """
    with _opened(file) as archive, archive.open(f"{name}.npy") as entry:
        shape, dtype = _header(entry, f"{file}: {name}")
        values = _read(entry, int(np.prod(shape)) * dtype.itemsize, str(file))
        return np.frombuffer(values, dtype).reshape(shape)


def file_digest(file: Path) -> str:
    """Return the SHA-256 of a file, as 64 hex digits."""
    total = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(_SKIPPED_AT_A_TIME):
            total.update(block)
    return total.hexdigest()


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[zipfile.ZipFile]:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file")
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{file} is no .npz, or is cut off or damaged: {error}") from None


def _read(file: IO[bytes], count: int, name: str) -> bytes:
    try:
        values = file.read(count)
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise ValueError(f"{name} is cut off or damaged: {error}") from None
    except Exception as error:  # zlib.error, of a module that need not be there
        if type(error).__module__ != "zlib":
            raise
        raise ValueError(f"{name} is cut off or damaged: {error}") from None
    if len(values) < count:
        raise ValueError(f"{name} is cut off: {count - len(values):,} bytes are missing")
    return values


def _header(entry: IO[bytes], what: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Read a .npy header; the entry is at the data afterwards."""
    if _read(entry, 6, what) != b"\x93NUMPY":
        raise ValueError(f"{what} is no .npy")
    version = _read(entry, 2, what)
    length = int.from_bytes(_read(entry, 2 if version[0] == 1 else 4, what), "little")
    try:
        if length > 10_000:
            raise ValueError("header too long")
        values = ast.literal_eval(_read(entry, length, what).decode("latin1"))
        shape, dtype = tuple(int(side) for side in values["shape"]), np.dtype(values["descr"])
        order = bool(values["fortran_order"])
    except (ValueError, SyntaxError, KeyError, TypeError) as error:
        raise ValueError(f"{what} has a damaged header: {error}") from None
    if dtype.hasobject:
        raise ValueError(f"{what} holds pickled objects, which could run code when read; refused")
    if order:
        raise ValueError(f"{what} is in Fortran order; save it with numpy.ascontiguousarray")
    return shape, dtype


def _check_images(shape: tuple[int, ...], dtype: np.dtype[Any], what: str) -> None:
    if dtype != np.uint8:
        raise ValueError(f"{what} must be uint8 from 0 to 255, got {dtype}")
    if len(shape) == 3 or (len(shape) == 4 and shape[3] == 1):
        raise ValueError(f"{what} is grey, (N, H, W); repeat it to (N, H, W, 3), got {shape}")
    if len(shape) != 4 or shape[3] != 3 or 0 in shape[1:]:
        raise ValueError(f"{what} must be (N, H, W, 3), got {shape}")
