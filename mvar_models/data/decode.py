"""Files and bytes to RGB images, whatever a folder of strangers' images holds.

In this order: the orientation noted by the camera (EXIF) is applied, 16 bits per channel are scaled to 8
(never clipped), transparent parts become white, and Pillow converts the rest to RGB. The first frame of an
animation is used.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from mvar_models.images import to_tensor

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
# Resizing the short side of a sliver to R would take gigabytes, of which the crop keeps a square.
_LONGEST_OVER_SHORTEST = 50
_STEPS_16_TO_8_BITS = 257  # 65535 / 255
# Larger images are decoded one at a time, and laid on white this many pixels at a time: the copies of one of
# 168 million pixels took 3.3 GB, and two threads decoded such images at once.
_LARGE = 1 << 24
_one_large_image = threading.Lock()


class UnreadableImage(ValueError):
    """An image that cannot be used; the message continues the image's name: "is empty (0 bytes)"."""


def load_image(source: str | os.PathLike[str] | bytes, resolution: int) -> Tensor:
    """Decode and crop a file, or a file's bytes, to (3, R, R) float32 in [-1, 1].

    Raises:
        UnreadableImage: the message says why.
    """
    return to_tensor(center_crop(decode(source), resolution))


def decode(source: str | os.PathLike[str] | bytes) -> Image.Image:
    """Decode a file, or a file's bytes, to an upright RGB image, or raise UnreadableImage."""
    if isinstance(source, bytes):
        return _decode(io.BytesIO(source))
    try:
        with Path(source).open("rb") as file:
            return _decode(file)
    except OSError as error:
        raise UnreadableImage(f"cannot be opened: {error.strerror or error}") from None


def _decode(file: BinaryIO) -> Image.Image:
    head = file.read(512)
    file.seek(0)
    if not head:
        raise UnreadableImage("is empty (0 bytes)")
    if head.startswith(b"version https://git-lfs"):
        raise UnreadableImage("is a Git LFS pointer, not the image itself; run `git lfs pull`")
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise UnreadableImage("is a web page, probably an error message saved instead of the image")
    try:
        with Image.open(file) as image:
            large = image.width * image.height > _LARGE
            with _one_large_image if large else contextlib.nullcontext():
                image.load()
                return _to_rgb(_upright(image), image.format)
    except UnreadableImage:
        raise
    except UnidentifiedImageError:
        raise UnreadableImage("is not an image in a format that Pillow reads") from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise UnreadableImage(
            f"claims more than {limit:,} pixels, which may be an attack; make it smaller if it is yours"
        ) from None
    # Pillow's decoders raise OSError, SyntaxError, struct.error and more on files that are cut or wrong.
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise UnreadableImage(f"cannot be decoded: {reason[0] if reason else type(error).__name__}") from None


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Damaged EXIF data is no reason to lose the image.
        return image


def _to_rgb(image: Image.Image, file_format: str | None) -> Image.Image:
    # Older Pillow opens 16-bit PNG in mode I.
    if image.mode.startswith("I;16") or (image.mode == "I" and file_format in ("PNG", "PPM")):
        grey = np.asarray(image).astype(np.int64)
        scaled = (grey + _STEPS_16_TO_8_BITS // 2) // _STEPS_16_TO_8_BITS
        return Image.fromarray(scaled.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise UnreadableImage("has 32 bits per pixel, whose range is unknown; save it with 8 or 16")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return _on_white(image)
    return image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """Lay a transparent image on white, some rows at a time."""
    out = Image.new("RGB", image.size)
    rows = max(1, _LARGE // image.width)
    for top in range(0, image.height, rows):
        layer = image.crop((0, top, image.width, min(top + rows, image.height))).convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        out.paste(Image.alpha_composite(white, layer).convert("RGB"), (0, top))
    return out


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
