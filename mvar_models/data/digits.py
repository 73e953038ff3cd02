"""The digits that need no download."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mvar_models.data.source import ImageSource, digest
from mvar_models.images import to_tensor
from mvar_models.optional import require

_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Digits(ImageSource):
    """The 1,797 handwritten digits that ship inside scikit-learn (8 x 8, 17 grey levels), resized to R x R RGB."""

    def __init__(self, resolution: int = 32) -> None:
        digits = require("sklearn.datasets", "train").load_digits()
        super().__init__(digits.target, _NAMES, flips=False)
        self._grey = (digits.images * (255 / 16)).round().astype(np.uint8)
        size = (resolution, resolution)
        pictures = [
            Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC).convert("RGB")
            for picture in self._grey
        ]
        self._images = torch.stack([to_tensor(picture) for picture in pictures])

    @cached_property
    def fingerprint(self) -> str:
        return digest(self.labels.astype("<i8").tobytes(), self._grey.tobytes())

    def name(self, index: int) -> str:
        return f"digit {index}"

    def read(self, index: int) -> Tensor:
        return self._images[index]

    def readable(self, which: np.ndarray) -> tuple[Tensor, np.ndarray]:
        return self.images(which), np.arange(len(which))

    def images(self, which: np.ndarray) -> Tensor:
        return self._images[torch.as_tensor(which)]
