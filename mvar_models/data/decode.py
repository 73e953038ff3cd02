"""Files and bytes to pictures: whatever a folder of strangers' images holds becomes RGB, or one line says why it cannot.

What is done, in this order: the orientation that a camera noted (EXIF) is applied; 16 bits a channel become 8 by scaling, never by clipping;
transparent parts show white; everything else is Pillow's conversion to RGB. Of animations the first frame is taken.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from mvar_models.images import to_tensor

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
# Resizing the short side of a sliver to R would make a picture of gigabytes, of which the crop keeps a square.
_LONGEST_OVER_SHORTEST = 50
_PIXEL_STEPS_16_TO_8 = 257  # 65535 / 255


class BrokenPicture(ValueError):
    """A picture that cannot be used. The message says why and reads on after the picture's name: "is empty (0 bytes)"."""


def load_picture(source: str | os.PathLike[str] | bytes, resolution: int) -> Tensor:
    """(3, R, R) float32 in [-1, 1] of a file or of a file's bytes: decoded and cropped; BrokenPicture where that is impossible."""
    return to_tensor(center_crop(read_picture(source), resolution))


def read_picture(source: str | os.PathLike[str] | bytes) -> Image.Image:
    """An RGB picture, upright; BrokenPicture where there is none."""
    if isinstance(source, bytes):
        return _decode(io.BytesIO(source))
    try:
        with Path(source).open("rb") as file:
            return _decode(file)
    except OSError as error:
        raise BrokenPicture(f"cannot be opened: {error.strerror or error}") from None


def _decode(file: BinaryIO) -> Image.Image:
    head = file.read(512)
    file.seek(0)
    if not head:
        raise BrokenPicture("is empty (0 bytes)")
    if head.startswith(b"version https://git-lfs"):
        raise BrokenPicture("is a Git LFS pointer, the picture itself was not fetched; run `git lfs pull`")
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise BrokenPicture("is a web page, probably an error message saved in a picture's place")
    try:
        with Image.open(file) as picture:
            picture.load()
            return _to_rgb(_upright(picture), picture.format)
    except BrokenPicture:
        raise
    except UnidentifiedImageError:
        raise BrokenPicture("is not a picture in a format that Pillow reads") from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise BrokenPicture(
            f"says it has more than {limit:,} pixels, which may be an attack; make it smaller if it is yours"
        ) from None
    except (
        Exception
    ) as error:  # decoders raise OSError, SyntaxError, struct.error and more on files that are cut or wrong
        reason = str(error).strip().splitlines()
        raise BrokenPicture(f"cannot be decoded: {reason[0] if reason else type(error).__name__}") from None


def _upright(picture: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # a damaged note about the camera is no reason to lose the picture
        return picture


def _to_rgb(picture: Image.Image, file_format: str | None) -> Image.Image:
    if picture.mode.startswith("I;16") or (
        picture.mode == "I" and file_format in ("PNG", "PPM")
    ):  # older Pillow reads 16-bit PNG as I
        grey = np.asarray(picture).astype(np.int64)
        return Image.fromarray(
            ((grey + _PIXEL_STEPS_16_TO_8 // 2) // _PIXEL_STEPS_16_TO_8).clip(0, 255).astype(np.uint8)
        ).convert("RGB")
    if picture.mode in ("I", "F"):
        raise BrokenPicture("has 32 bits a pixel, whose range nothing tells; save it with 8 or 16")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return picture.convert("RGB")


def center_crop(picture: Image.Image, resolution: int) -> Image.Image:
    """The released recipe: halve by boxes while the short side is at least twice the resolution, then bicubic, then cut the centre.

    BrokenPicture for slivers, longer than 50 times their width.
    """
    if max(picture.size) > _LONGEST_OVER_SHORTEST * min(picture.size):
        raise BrokenPicture(
            f"is {picture.width} x {picture.height} pixels, a strip whose middle square says nothing"
        )
    while min(picture.size) >= 2 * resolution:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    factor = resolution / min(picture.size)
    size = (round(picture.width * factor), round(picture.height * factor))
    picture = picture.resize(size, Image.Resampling.BICUBIC)
    left, top = (picture.width - resolution) // 2, (picture.height - resolution) // 2
    return picture.crop((left, top, left + resolution, top + resolution))
