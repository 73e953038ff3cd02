"""Decode and crop images of a dataset to tensors of one size, and augment them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mvar_models.images import UnreadableImage, decode, to_tensor

# A list of our own: the same folder has the same images whatever this Pillow was built with.
SUFFIXES = frozenset({
    ".apng", ".avif", ".avifs", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpf",
    ".jpg", ".jpx", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
})  # fmt: skip
# Resizing the short side of a sliver to R would take gigabytes, of which the crop keeps a square.
_LONGEST_OVER_SHORTEST = 50
# Of `affine`, for classes that a mirror would change, such as digits.
MAX_SHIFT = 0.06  # of the side
MAX_ROTATION = 0.12  # radians
MAX_SCALE = 0.08
MAX_SHEAR = 0.08


def load_image(source: str | os.PathLike[str] | bytes, resolution: int | None) -> Tensor:
    """Decode and crop a file, or a file's bytes, to (3, R, R) float32 in [-1, 1].

    Raises:
        UnreadableImage: the message says why.
    """
    assert resolution is not None, "ImageSource.at says it"
    return to_tensor(center_crop(decode(source), resolution))


def read_file(path: str) -> bytes:
    """Read the bytes of an image's file, or raise UnreadableImage."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UnreadableImage(f"cannot be opened: {error.strerror or error}") from None


def center_crop(image: Image.Image, resolution: int) -> Image.Image:
    """Resize the short side to `resolution` and cut the centre square, as the released recipe does.

    Raises:
        UnreadableImage: the image is more than 50 times as long as it is wide.
    """
    if max(image.size) > _LONGEST_OVER_SHORTEST * min(image.size):
        raise UnreadableImage(
            f"is {image.width} x {image.height} pixels, a strip whose middle square says nothing"
        )
    # The released recipe halves by boxes first, which also costs less than one wide bicubic filter.
    while min(image.size) >= 2 * resolution:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    factor = resolution / min(image.size)
    size = (round(image.width * factor), round(image.height * factor))
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (image.width - resolution) // 2, (image.height - resolution) // 2
    return image.crop((left, top, left + resolution, top + resolution))


def random_affine(rng: np.random.Generator, count: int) -> np.ndarray:
    """Sample (count, 6) parameters in [-1, 1]: shift x, shift y, rotation, scale x, scale y, shear."""
    return rng.uniform(-1, 1, (count, 6))


def affine(images: Tensor, parameters: np.ndarray) -> Tensor:
    """Apply a small affine map to each image; pixels from outside repeat the border.

    Args:
        images: (n, 3, R, R).
        parameters: (n, 6), as `random_affine` samples them.
    """
    shift_x, shift_y, rotation, scale_x, scale_y, shear = parameters.T
    cos, sin = np.cos(rotation * MAX_ROTATION), np.sin(rotation * MAX_ROTATION)
    grow_x, grow_y, slant = 1 + scale_x * MAX_SCALE, 1 + scale_y * MAX_SCALE, shear * MAX_SHEAR
    # affine_grid's coordinates run from -1 to 1, so a shift by a fraction of the side counts twice.
    rows = [
        [cos * grow_x, (slant - sin) * grow_y, 2 * MAX_SHIFT * shift_x],
        [sin * grow_x, cos * grow_y, 2 * MAX_SHIFT * shift_y],
    ]
    matrix = torch.from_numpy(np.array(rows)).permute(2, 0, 1).to(images.dtype)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
