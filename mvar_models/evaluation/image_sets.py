"""Sets of images: in memory, in files, or examples of a dataset."""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from mvar_models.data.source import ImageSource
from mvar_models.distributed import Processes
from mvar_models.files import digest
from mvar_models.images import UnreadableImage, decode, to_uint8


class ImageSet(abc.ABC):
    """Images 0 .. len - 1 of one size. A subclass has a `digest` and reads images.

    Attributes:
        name: What messages and tables call it.
        size: Height and width.
        labels: (N,) int64, or None where classes are not known.
        class_names: One per class, by which classes are compared; "" is an unknown one, None none at all.
    """

    def __init__(
        self,
        name: str,
        count: int,
        size: tuple[int, int],
        labels: np.ndarray | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.name = name
        self.size = size
        self.labels = labels
        self.class_names = class_names
        self._count = count

    def __len__(self) -> int:
        return self._count

    @property
    @abc.abstractmethod
    def digest(self) -> str:
        """Hex digits that change with the content."""

    @abc.abstractmethod
    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read (n, H, W, 3) of uint8, and the n positions in `indices` that could be read."""

    def ranges(self, starts: Sequence[int], count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield indices (n,) and images (n, H, W, 3) from each ascending start, `count` or what is left."""
        for start in starts:
            indices = np.arange(start, min(start + count, len(self)))
            images, kept = self.read(indices)
            if len(kept):
                yield indices[kept], images

    def log_problems(self) -> None:  # noqa: B027 - most kinds have none
        """Log how many images could not be read."""


class ArrayImages(ImageSet):
    """Images in memory: (N, H, W, 3) of uint8, and the (N,) classes if they are known."""

    def __init__(self, images: np.ndarray, labels: np.ndarray | None = None, name: str = "images") -> None:
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
            kind = getattr(images, "dtype", type(images).__name__)
            raise ValueError(f"{name} must be an array of uint8 from 0 to 255, got {kind}")
        if images.ndim != 4 or images.shape[3] != 3:
            raise ValueError(f"{name} must be (n, H, W, 3), got {images.shape}")
        if labels is not None and len(labels) != len(images):
            raise ValueError(f"labels must be one per image, got {len(labels)} for {len(images)} of {name}")
        labels = None if labels is None else np.asarray(labels, dtype=np.int64)
        super().__init__(name, len(images), images.shape[1:3], labels)
        self._images = images

    @property
    def digest(self) -> str:
        total = hashlib.sha256(str(self._images.shape).encode())
        total.update(np.ascontiguousarray(self._images).data)
        return total.hexdigest()

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._images[indices], np.arange(len(indices))


class SourceImages(ImageSet):
    """Examples of a dataset, resized and cropped as for training.

    Args:
        source: The dataset.
        members: (n,) the examples that make up the set.
        name: What messages call it.
        resolution: Side of the images.
    """

    def __init__(self, source: ImageSource, members: np.ndarray, name: str, resolution: int) -> None:
        labels = source.labels[members] if len(source.class_names) > 1 else None
        super().__init__(name, len(members), (resolution, resolution), labels, source.class_names)
        self.source, self.members = source, members
        # SHA-256 of the bytes of each image, where it is known.
        self._hashes, self._hashed = np.zeros((len(members), 32), np.uint8), np.zeros(len(members), bool)

    @cached_property
    def digest(self) -> str:  # type: ignore[override]  # mypy takes a property for more than this one
        self._hash(np.flatnonzero(~self._hashed))
        members = np.asarray(self.members, "<i8").tobytes()
        return digest(self.source.fingerprint, self._hashes.tobytes(), str(self.size), members)

    def _hash(self, indices: np.ndarray) -> None:
        for index, found in zip(indices, self.source.hashes(self.members[indices])):
            self._hashes[index] = np.frombuffer(found or bytes(32), np.uint8)
        self._hashed[indices] = True

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images, kept = self.source.readable(self.members[indices])
        # Now, while the files are in the system's cache: `digest` would read all of them again.
        self._hash(indices)
        if not len(kept):
            return np.empty((0, *self.size, 3), dtype=np.uint8), kept
        return to_uint8(images), kept

    def log_problems(self) -> None:
        self.source.log_problems()


class FileImages(ImageSet):
    """Image files, taken as they are, since a resize decides a Frechet distance as much as a model does.

    Args:
        files: Their paths.
        labels: (n,) their classes, if known.
        name: What messages call them.
        class_names: One name per class, if known.

    Raises:
        ValueError: there are none, or the first cannot be read.
    """

    def __init__(
        self,
        files: Sequence[str],
        labels: np.ndarray | None,
        name: str,
        class_names: Sequence[str] | None = None,
    ) -> None:
        if not files:
            raise ValueError(f"{name} has no images")
        self._files = files
        super().__init__(name, len(files), self._decoded(0).shape[:2], labels, class_names)

    @property
    def digest(self) -> str:
        total = hashlib.sha256()
        for file in self._files:
            total.update(hashlib.sha256(Path(file).read_bytes()).digest())
        return total.hexdigest()

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images = [self._decoded(int(index)) for index in indices]
        for index, image in zip(indices, images):
            if image.shape[:2] != self.size:
                height, width = self.size
                raise ValueError(
                    f"{self._files[int(index)]} is {image.shape[1]} x {image.shape[0]} pixels, the first "
                    f"image of {self.name} is {width} x {height}; with --resolution all are "
                    "resized and cropped alike"
                )
        return np.stack(images), np.arange(len(indices))

    def _decoded(self, index: int) -> np.ndarray:
        try:
            return np.asarray(decode(self._files[index]))
        except UnreadableImage as error:
            raise ValueError(f"{self._files[index]} {error}") from None


def batches(
    images: ImageSet, batch_size: int, processes: Processes | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the indices (n,) and images (n, H, W, 3) of this process's batches.

    Which images make a batch does not depend on the number of processes, so neither do their features.
    """
    processes = processes or Processes()
    starts = range(0, len(images), batch_size)[processes.rank :: processes.world_size]
    return images.ranges(starts, batch_size)


def evenly_spaced(count: int, most: int) -> np.ndarray:
    """Return at most `most` of the indices 0 .. count - 1, evenly spaced and ascending."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))
