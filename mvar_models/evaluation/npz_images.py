"""Images in an .npz, read a piece at a time: OpenAI's file names, `mvar sample --npz`, and NumPy's own.

An .npz is a zip of .npy files. `numpy.load` would bring a whole member into memory (50,000 images of 256 px
are 10 GB). Here the header of the member is read, and then the rows that are asked for.
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

from mvar_models.data.arrays import (
    npz_comment,
    npz_names,
    open_member,
    open_npz,
    read_array,
    read_bytes,
    read_header,
)
from mvar_models.files import file_digest

_IMAGE_NAMES = ("arr_0", "images")
_LABEL_NAMES = ("arr_1", "labels")
_CLASS_NAMES = "class_names"
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
        class_names: One name per class, from `class_names` or as `mvar sample --npz` notes them; or None.
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
        self._member = found[0]
        with open_npz(self.path) as archive, open_member(archive, self._member) as entry:
            self.shape, dtype = read_header(entry, f"{file}: {self._member}")
            self._begin = entry.tell()
            _check_images(self.shape, dtype, f"{file}: {self._member}")
            info = archive.getinfo(f"{self._member}.npy")
            self._stored = info.compress_type == zipfile.ZIP_STORED
            self._offset = info.header_offset
            self._row = math.prod(self.shape[1:])
            if info.file_size != self._begin + self.shape[0] * self._row:
                raise ValueError(f"{file}: {self._member} is cut off, it has {info.file_size:,} bytes")
        self.labels = self._read_labels(names)
        self.class_names = read_class_names(self.path, names, self.labels)

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
                values = read_bytes(file, rows * self._row, self.name)
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
        with open_npz(self.path) as archive:
            if self._stored:
                # Bytes as they are: straight from the file, where a seek costs nothing.
                with self.path.open("rb") as file:
                    file.seek(self._offset)
                    header = read_bytes(file, _LOCAL_HEADER, self.name)
                    lengths = sum(int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
                    yield file, self._offset + _LOCAL_HEADER + lengths + self._begin
            else:
                with open_member(archive, self._member) as entry:
                    yield entry, self._begin

    def _move(self, file: IO[bytes], place: int, wanted: int) -> int:
        if self._stored:
            return file.seek(wanted)
        while place < wanted:  # what is compressed can only be read through
            place += len(read_bytes(file, min(_SKIPPED_AT_A_TIME, wanted - place), self.name))
        return place

    def _read_labels(self, names: set[str]) -> np.ndarray | None:
        found = [name for name in _LABEL_NAMES if name in names]
        if found:
            return read_array(self.path, found[0], "iu", (len(self),)).astype(np.int64)
        # What `mvar sample --npz` notes there: images lie class by class.
        per_class = npz_comment(self.path).get("per_class")
        if isinstance(per_class, int) and per_class > 0 and len(self) % per_class == 0:
            return np.arange(len(self)) // per_class
        return None


def read_class_names(path: Path, names: set[str], labels: np.ndarray | None) -> tuple[str, ...] | None:
    """Read the names of an .npz's classes, if it has labels and names.

    Raises:
        ValueError: a label has no name.
    """
    if labels is None or not len(labels):
        return None
    if _CLASS_NAMES in names:
        found = tuple(str(name) for name in read_array(path, _CLASS_NAMES, "U", (None,)))
    else:
        noted = npz_comment(path).get(_CLASS_NAMES)
        if not isinstance(noted, list) or not all(isinstance(name, str) for name in noted):
            return None
        found = tuple(noted)
    if not 0 <= labels.min() <= labels.max() < len(found):
        raise ValueError(
            f"{path}: {_CLASS_NAMES} has {len(found)} names, for labels from {labels.min()} to {labels.max()}"
        )
    return found


def _check_images(shape: tuple[int, ...], dtype: np.dtype[Any], what: str) -> None:
    if dtype != np.uint8:
        raise ValueError(f"{what} must be uint8 from 0 to 255, got {dtype}")
    if len(shape) == 3 or (len(shape) == 4 and shape[3] == 1):
        raise ValueError(f"{what} is grey, (N, H, W); repeat it to (N, H, W, 3), got {shape}")
    if len(shape) != 4 or shape[3] != 3 or 0 in shape[1:]:
        raise ValueError(f"{what} must be (N, H, W, 3), got {shape}")
