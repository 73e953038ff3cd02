"""Decode images of any kind to RGB, convert them to tensors and back, and arrange them in grids."""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError
from torch import Tensor

_STEPS_16_TO_8_BITS = 257  # 65535 / 255
# Larger images are decoded one at a time, and laid on their background this many pixels at a time: the copies
# of one of 168 million pixels took 3.3 GB, and two threads decoded such images at once.
_LARGE = 1 << 24
_one_large_image = threading.Lock()
# Pixels between the images of a grid.
_GAP = 2
# Small images of a sheet are enlarged to about this side, by whole pixels.
_SHOWN_SIDE = 96


class UnreadableImage(ValueError):
    """An image that cannot be used; the message continues the image's name: "is empty (0 bytes)"."""


def decode(source: str | os.PathLike[str] | bytes, background: str = "white") -> Image.Image:
    """Decode a file, or a file's bytes, to RGB as `rgb` does, or raise UnreadableImage."""
    if isinstance(source, bytes):
        return _decode(io.BytesIO(source), background)
    try:
        with Path(source).open("rb") as file:
            return _decode(file, background)
    except OSError as error:
        raise UnreadableImage(f"cannot be opened: {error.strerror or error}") from None


def _decode(file: BinaryIO, background: str) -> Image.Image:
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
            return rgb(image, background)
    except (UnreadableImage, MemoryError):
        raise
    except UnidentifiedImageError:
        raise UnreadableImage("is not an image in a format that Pillow reads") from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise UnreadableImage(
            f"claims more than {limit:,} pixels, which may be an attack; make it smaller if it is yours"
        ) from None
    except Exception as error:
        raise _undecodable(error) from None


def rgb(image: Image.Image, background: str = "white") -> Image.Image:
    """Return an image of any mode in RGB, as every command and method sees it.

    In this order: the orientation noted by the camera (EXIF) is applied, 16 bits per channel are scaled to 8
    (never clipped), transparent parts get the background, and Pillow converts the rest. Of an animation the
    current frame is used, which is the first of a file.

    Raises:
        UnreadableImage: the message says why.
    """
    large = image.width * image.height > _LARGE
    try:
        with _one_large_image if large else contextlib.nullcontext():
            image.load()
            return _to_rgb(_upright(image), image.format, background)
    except (UnreadableImage, MemoryError):
        raise
    except Exception as error:
        raise _undecodable(error) from None


def _undecodable(error: Exception) -> UnreadableImage:
    # Pillow's decoders raise OSError, SyntaxError, struct.error and more on files that are cut or wrong.
    reason = str(error).strip().splitlines()
    return UnreadableImage(f"cannot be decoded: {reason[0] if reason else type(error).__name__}")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Damaged EXIF data is no reason to lose the image.
        return image


def _to_rgb(image: Image.Image, file_format: str | None, background: str) -> Image.Image:
    clear = image.info.get("transparency")
    # Older Pillow opens 16-bit PNG in mode I.
    if image.mode.startswith("I;16") or (image.mode == "I" and file_format in ("PNG", "PPM")):
        grey = np.asarray(image).astype(np.int64)
        scaled = ((grey + _STEPS_16_TO_8_BITS // 2) // _STEPS_16_TO_8_BITS).clip(0, 255).astype(np.uint8)
        if isinstance(clear, int):
            scaled[grey == clear] = ImageColor.getcolor(background, "L")
        return Image.fromarray(scaled).convert("RGB")
    if image.mode in ("I", "F"):
        raise UnreadableImage("has 32 bits per pixel, whose range is unknown; save it with 8 or 16")
    if isinstance(clear, tuple) and max(clear) > 255:
        # Pillow keeps the high bytes of 16-bit colours, and compares them with the low one of this.
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or clear is not None:
        return _laid_on(image, background)
    return image.convert("RGB")


def _laid_on(image: Image.Image, background: str) -> Image.Image:
    """Lay a transparent image on a background, some rows at a time."""
    out = Image.new("RGB", image.size)
    rows = max(1, _LARGE // image.width)
    for top in range(0, image.height, rows):
        layer = image.crop((0, top, image.width, min(top + rows, image.height))).convert("RGBA")
        below = Image.new("RGBA", layer.size, background)
        out.paste(Image.alpha_composite(below, layer).convert("RGB"), (0, top))
    return out


def to_tensor(image: Image.Image) -> Tensor:
    """Convert an RGB image to (3, R, R) float32 in [-1, 1]."""
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).float() / 127.5 - 1


def to_uint8(images: Tensor) -> np.ndarray:
    """Convert images (n, 3, R, R) in [-1, 1] to an array (n, R, R, 3) of uint8, rounded to nearest."""
    values = ((images.detach().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return values.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def to_pil(images: Tensor) -> list[Image.Image]:
    """Convert images (n, 3, R, R) in [-1, 1] to n PIL images."""
    return [Image.fromarray(values) for values in to_uint8(images)]


def grid(images: Sequence[Image.Image], columns: int, gap: int = _GAP) -> Image.Image:
    """Paste images of one size into one image, row by row on white.

    Args:
        images: At least one image; all have the size of the first.
        columns: Images per row.
        gap: Pixels between neighbours.
    """
    if not images:
        raise ValueError("a grid needs at least one image")
    width, height = images[0].size
    rows = -(-len(images) // columns)
    canvas = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for index, image in enumerate(images):
        canvas.paste(image, ((index % columns) * (width + gap), (index // columns) * (height + gap)))
    return canvas


def sheet(rows: Mapping[str, Sequence[Image.Image]]) -> Image.Image:
    """Paste rows of images of one size below each other, each after its name.

    Args:
        rows: Name -> images; rows may differ in length.
    """
    width, height = next(iter(rows.values()))[0].size
    zoom = max(1, round(_SHOWN_SIDE / max(width, height)))
    columns = max(map(len, rows.values()))
    blank = Image.new("RGB", (width * zoom, height * zoom), "white")
    cells = []
    for images in rows.values():
        large = [image.resize(blank.size, Image.Resampling.NEAREST) for image in images]
        cells += large + [blank] * (columns - len(large))
    body = grid(cells, columns, _GAP)
    font = ImageFont.load_default()
    margin = 8 + int(max(font.getlength(name) for name in rows))
    canvas = Image.new("RGB", (margin + body.width, body.height), "white")
    canvas.paste(body, (margin, 0))
    pen = ImageDraw.Draw(canvas)
    for index, name in enumerate(rows):
        top = index * (blank.height + _GAP)
        pen.text((4, top + blank.height // 2 - 6), name, fill="black", font=font)
    return canvas
