"""Pictures with labels, and the split that every command keeps.

A dataset is a fixed list of examples; nothing random happens here but the split, which depends on the number of examples and the seed alone.
"""

from __future__ import annotations

import abc
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mvar_models.extras import require

DIGITS = "digits"
SPLIT_SEED = 0
HELD_OUT = 0.25
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


class ImageSource(abc.ABC):
    """Examples 0 .. len - 1.

    Attributes:
        labels: (N,) int64.
        class_names: one per label.
        flips: whether a mirrored picture is still of its class.
    """

    labels: np.ndarray
    class_names: tuple[str, ...]
    flips: bool

    def __len__(self) -> int:
        return len(self.labels)

    @abc.abstractmethod
    def images(self, which: np.ndarray) -> Tensor:
        """(n, 3, R, R) float32 in [-1, 1]."""


def open_source(data: str | os.PathLike[str], resolution: int) -> ImageSource:
    """`digits`, or a folder that holds one folder of pictures per class."""
    if str(data) == DIGITS:
        return Digits(resolution)
    if Path(data).is_dir():
        return ClassFolders(Path(data), resolution)
    raise FileNotFoundError(f"{data}: data must be 'digits' or a folder with one folder of pictures per class")


def split(source: ImageSource, held_out: float = HELD_OUT, seed: int = SPLIT_SEED) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training and of the held-out examples; the same share of every class is held out."""
    rng = np.random.default_rng(seed)
    train, val = [], []
    for label in range(len(source.class_names)):
        members = rng.permutation(np.flatnonzero(source.labels == label))
        cut = round(len(members) * held_out)
        val.append(members[:cut])
        train.append(members[cut:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(val))


def to_tensor(picture: Image.Image) -> Tensor:
    """(3, R, R) float32 in [-1, 1] of an RGB picture."""
    return torch.from_numpy(np.array(picture, dtype=np.uint8)).permute(2, 0, 1).float() / 127.5 - 1


class Digits(ImageSource):
    """The 1,797 handwritten digits that ship inside scikit-learn (8 x 8, 17 grey levels), resized to R x R RGB."""

    flips = False

    def __init__(self, resolution: int = 32) -> None:
        digits = require("sklearn.datasets", "train").load_digits()
        self.labels = digits.target.astype(np.int64)
        self.class_names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
        grey = (digits.images * (255 / 16)).round().astype(np.uint8)
        size = (resolution, resolution)
        pictures = [Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC).convert("RGB") for picture in grey]
        self._images = torch.stack([to_tensor(picture) for picture in pictures])

    def images(self, which: np.ndarray) -> Tensor:
        return self._images[torch.as_tensor(which)]


class ClassFolders(ImageSource):
    """A folder with one folder per class, names sorted; pictures are read when asked for."""

    flips = True

    def __init__(self, folder: Path, resolution: int) -> None:
        classes = sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
        if not classes:
            raise ValueError(f"{folder} has no class folders; put the pictures of each class into a folder named after it")
        self.resolution = resolution
        self.class_names = tuple(child.name for child in classes)
        self.files: list[Path] = []
        labels: list[int] = []
        for label, child in enumerate(classes):
            found = sorted(path for path in child.rglob("*") if path.suffix.lower() in _SUFFIXES)
            if not found:
                raise ValueError(f"{child} has no pictures ({', '.join(sorted(_SUFFIXES))})")
            self.files += found
            labels += [label] * len(found)
        self.labels = np.array(labels, dtype=np.int64)

    def images(self, which: np.ndarray) -> Tensor:
        return torch.stack([self._read(self.files[int(index)]) for index in which])

    def _read(self, path: Path) -> Tensor:
        try:
            with Image.open(path) as picture:
                return to_tensor(center_crop(picture.convert("RGB"), self.resolution))
        except OSError as error:
            raise ValueError(f"{path} cannot be read as a picture: {error}") from None


def center_crop(picture: Image.Image, resolution: int) -> Image.Image:
    """The released recipe: halve by boxes while the short side is at least twice the resolution, then bicubic, then cut the centre."""
    while min(picture.size) >= 2 * resolution:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    factor = resolution / min(picture.size)
    size = (round(picture.width * factor), round(picture.height * factor))
    picture = picture.resize(size, Image.Resampling.BICUBIC)
    left, top = (picture.width - resolution) // 2, (picture.height - resolution) // 2
    return picture.crop((left, top, left + resolution, top + resolution))
