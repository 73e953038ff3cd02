"""Images of a data set, whatever a folder of strangers' images holds, cropped to one size."""

from __future__ import annotations

import os
from pathlib import Path

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


def load_image(source: str | os.PathLike[str] | bytes, resolution: int) -> Tensor:
    """Decode and crop a file, or a file's bytes, to (3, R, R) float32 in [-1, 1].

    Raises:
        UnreadableImage: the message says why.
    """
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
