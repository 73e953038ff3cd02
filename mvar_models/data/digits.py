"""The digits dataset, which needs no download."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mvar_models.data.source import ImageSource
from mvar_models.files import digest
from mvar_models.images import to_tensor
from mvar_models.optional import require

_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Digits(ImageSource):
    """The 1,797 handwritten digits of scikit-learn (8 x 8, 17 grey levels), resized to R x R RGB."""

    def __init__(self, resolution: int | None = 32) -> None:
        digits = require("sklearn.datasets", "train").load_digits()
        super().__init__(digits.target, _NAMES, mirror_safe=False)
        self.resolution = resolution
        self._grey = (digits.images * (255 / 16)).round().astype(np.uint8)

    def at(self, resolution: int) -> Digits:
        other = super().at(resolution)
        vars(other).pop("_images", None)
        return other

    @cached_property
    def _images(self) -> Tensor:
        assert self.resolution is not None
        size = (self.resolution, self.resolution)
        resized = [Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC) for grey in self._grey]
        return torch.stack([to_tensor(image.convert("RGB")) for image in resized])

    @cached_property
    def fingerprint(self) -> str:
        # Of the digits as they come, so that it does not depend on the resolution.
        return digest(self.labels.astype("<i8").tobytes(), self._grey.tobytes())

    def name(self, index: int) -> str:
        return f"digit {index}"

    def read(self, index: int) -> Tensor:
        return self._images[index]

    def readable(self, indices: np.ndarray) -> tuple[Tensor, np.ndarray]:
        return self.images(indices), np.arange(len(indices))

    def images(self, indices: np.ndarray) -> Tensor:
        return self._images[torch.as_tensor(indices, device="cpu")]
