"""Sets of images to compare: an array, an .npz, a folder, or anything that `--data` takes.

Images of a folder are taken as they are, since a resize decides a Frechet distance as much as a model does.
Datasets are resized and cropped as for training. "PLACE@train" and "PLACE@held-out" name the parts of a
dataset that training uses and reserves.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol, cast

import numpy as np
from torch import Tensor

from mvar_models.data.folders import ClassFolders
from mvar_models.data.open import DIGITS, check_data_exists, open_images
from mvar_models.data.source import ImageSource
from mvar_models.evaluation.npz_images import NpzImages
from mvar_models.files import digest
from mvar_models.images import UnreadableImage, decode, to_uint8
from mvar_models.pipeline.inputs import images_of
from mvar_models.pipeline.output import PipelineOutput
from mvar_models.records import FileName, read_record, within

PARTS = ("train", "held-out")
_DIGITS_SIDE = 32
_CONVERTED = 64
# What `mvar sample` writes beside its PNGs.
_RECORD = "samples.json"


class ImageSet(Protocol):
    """Images 0 .. len - 1 of one size.

    Attributes:
        name: What messages and tables call it.
        labels: (N,) int64, or None where classes are not known.

    It may also have `class_names`, one per class, by which classes are then compared; "" is an unknown one.
    """

    name: str
    labels: np.ndarray | None

    def __len__(self) -> int: ...

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""

    @property
    def digest(self) -> str:
        """Hex digits that change with the content."""

    def read(self, indices: np.ndarray, /) -> tuple[np.ndarray, np.ndarray]:
        """Read (n, H, W, 3) of uint8, and the n positions in `indices` that could be read."""


class ArrayImages:
    """Images in memory.

    Args:
        images: (N, H, W, 3) uint8.
        labels: (N,) their classes, if known.
        name: What messages call them.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray | None = None, name: str = "images") -> None:
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
            kind = getattr(images, "dtype", type(images).__name__)
            raise ValueError(f"{name} must be an array of uint8 from 0 to 255, got {kind}")
        if images.ndim != 4 or images.shape[3] != 3:
            raise ValueError(f"{name} must be (n, H, W, 3), got {images.shape}")
        if labels is not None and len(labels) != len(images):
            raise ValueError(f"labels must be one per image, got {len(labels)} for {len(images)} of {name}")
        self._images = images
        self.labels = None if labels is None else np.asarray(labels, dtype=np.int64)
        self.name = name

    def __len__(self) -> int:
        return len(self._images)

    @property
    def size(self) -> tuple[int, int]:
        return self._images.shape[1], self._images.shape[2]

    @property
    def digest(self) -> str:
        total = hashlib.sha256(str(self._images.shape).encode())
        total.update(np.ascontiguousarray(self._images).data)
        return total.hexdigest()

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._images[indices], np.arange(len(indices))


class SourceImages:
    """Examples of a dataset, resized and cropped as for training.

    Args:
        source: The dataset.
        members: (n,) the examples that make up the set.
        name: What messages call it.
        resolution: Side of the images.
    """

    def __init__(self, source: ImageSource, members: np.ndarray, name: str, resolution: int) -> None:
        self.source = source
        self.members = members
        self.name = name
        self.labels = source.labels[members] if len(source.class_names) > 1 else None
        self.class_names = source.class_names
        self.size = (resolution, resolution)

    def __len__(self) -> int:
        return len(self.members)

    @cached_property
    def digest(self) -> str:
        content = self.source.content(self.members)
        return digest(
            self.source.fingerprint, content, str(self.size), np.asarray(self.members, "<i8").tobytes()
        )

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images, kept = self.source.readable(self.members[indices])
        if not len(kept):
            return np.empty((0, *self.size, 3), dtype=np.uint8), kept
        return to_uint8(images), kept


class FileImages:
    """Image files, taken as they are.

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
        files: list[str],
        labels: np.ndarray | None,
        name: str,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self._files = files
        self.class_names = class_names
        self.labels = labels
        self.name = name
        if not files:
            raise ValueError(f"{name} has no images")
        width, height = self._decoded(0).shape[1::-1]
        self.size = (height, width)

    def __len__(self) -> int:
        return len(self._files)

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


@dataclass(frozen=True)
class _Sample:
    ignores_unknown: ClassVar[bool] = True

    file: FileName
    label: Annotated[int, within(0, 1 << 20)]
    name: str | None = None


@dataclass(frozen=True)
class _Samples:
    ignores_unknown: ClassVar[bool] = True

    pictures: Sequence[_Sample]


def open_set(place: Any, *, resolution: int | None = None, name: str = "") -> ImageSet:
    """Open images by name, or take those in memory.

    Args:
        place: Images as a pipeline returns them: a list of PIL images, its output, an array (N, H, W, 3) of
            uint8 or of floats in [0, 1], or such a tensor (N, 3, H, W); an .npz; a folder of images, or of
            one folder per class, or as `mvar sample` writes it; or a dataset as for `--data`. A dataset may
            end in "@train" or "@held-out". An `ImageSet` is returned as it is.
        resolution: Side that datasets and folders are resized and cropped to. Default: a folder's images as
            they are; 32 for digits.
        name: What messages call images in memory.

    Raises:
        TypeError: nothing of these.
        FileNotFoundError: nothing of that name.
        ValueError: it has no images that can be used; the message says why.
    """
    if not isinstance(place, str | os.PathLike):
        is_set = hasattr(place, "read") and hasattr(place, "labels")
        return cast(ImageSet, place) if is_set else _in_memory(place, name or "images")
    text = os.fspath(place)
    path, part = Path(text), ""
    if not path.exists() and "@" in text:
        text, _, part = text.rpartition("@")
        path = Path(text)
        if part not in PARTS:
            raise ValueError(f"{place}: after @ comes {' or '.join(PARTS)}, got {part!r}")
    if path.suffix == ".npz" and not part:
        return NpzImages(path)
    check_data_exists(text)
    if path.is_dir() and (path / _RECORD).is_file() and not part:
        return _samples(path)
    if resolution is None and path.is_dir() and not part:
        source = open_images(text, _DIGITS_SIDE)
        if isinstance(source, ClassFolders):
            return FileImages(source.files, _labels(source), str(place), source.class_names)
    if resolution is None and text != DIGITS:
        raise ValueError(f"{place}: the resolution is missing, which side should its images have?")
    side = resolution or _DIGITS_SIDE
    source = open_images(text, side)
    return SourceImages(source, _members(source, part, str(place)), str(place), side)


def _in_memory(images: Any, name: str) -> ArrayImages:
    """Convert images to uint8, some at a time: as floats they take four times the memory."""
    if isinstance(images, PipelineOutput):
        images = images.images
    if isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.shape[3:] == (3,):
        return ArrayImages(images, name=name)
    if isinstance(images, np.ndarray | Tensor):
        if images.ndim != 4:
            expected = "(n, H, W, 3)" if isinstance(images, np.ndarray) else "(n, 3, H, W)"
            raise ValueError(f"{name} must be {expected}, got {tuple(images.shape)}")
        parts = [images[start : start + _CONVERTED] for start in range(0, len(images), _CONVERTED)]
    elif isinstance(images, list | tuple):
        parts = list(images)
    else:
        raise TypeError(
            f"{name} must be a place, an ImageSet, or images: a list of PIL images, an array (n, H, W, 3), a "
            f"tensor (n, 3, H, W) or what a pipeline returns; got {type(images).__name__}"
        )
    found = [to_uint8(image[None] * 2 - 1) for part in parts for image in images_of(part, name)]
    if not found:
        raise ValueError(f"{name} must be at least one image, got none")
    sizes = [image.shape[1:3] for image in found]
    other = next((index for index, size in enumerate(sizes) if size != sizes[0]), None)
    if other is not None:
        raise ValueError(
            f"{name} must be of one size: image {other} is {sizes[other][1]} x {sizes[other][0]}, "
            f"the first is {sizes[0][1]} x {sizes[0][0]}"
        )
    return ArrayImages(np.concatenate(found), name=name)


def _samples(folder: Path) -> FileImages:
    """The folder that `mvar sample` writes, without its grid."""
    images = read_record(folder / _RECORD, _Samples).pictures
    files = [str(folder / image.file) for image in images]
    labels = np.array([image.label for image in images], dtype=np.int64)
    called = {image.label: image.name for image in images if image.name}
    names = [called.get(label, "") for label in range(max(called) + 1)] if called else None
    return FileImages(files, labels, str(folder), names)


def _labels(source: ImageSource) -> np.ndarray | None:
    return source.labels if len(source.class_names) > 1 else None


def _members(source: ImageSource, part: str, place: str) -> np.ndarray:
    if part == "train":
        return source.train
    if part:
        if not len(source.split.reserved):
            raise ValueError(f"{place}: {len(source)} images are too few to hold any out")
        return source.split.reserved
    return np.arange(len(source))


def spread(count: int, most: int) -> np.ndarray:
    """Return at most `most` of the indices 0 .. count - 1, evenly spread and ascending."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def batches(
    images: ImageSet, batch_size: int, rank: int = 0, world_size: int = 1
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the indices (n,) and images (n, H, W, 3) of this process's batches.

    Which images make a batch does not depend on the number of processes, so neither do their features.

    Args:
        images: The set.
        batch_size: Images at a time.
        rank, world_size: Which process of how many this is; it takes every `world_size`-th batch.
    """
    starts = list(range(0, len(images), batch_size))[rank::world_size]
    if isinstance(images, NpzImages):
        for start, found in zip(starts, images.ranges(starts, batch_size)):
            yield np.arange(start, start + len(found)), found
        return
    for start in starts:
        indices = np.arange(start, min(start + batch_size, len(images)))
        found, kept = images.read(indices)
        if len(kept):
            yield indices[kept], found
