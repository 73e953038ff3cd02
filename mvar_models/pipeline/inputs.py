"""Images and masks of every usual kind as tensors."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mvar_models.images import UnreadableImage, decode, rgb
from mvar_models.pipeline.output import PipelineOutput

ImageInput = Any  # a file's path, a PIL image, an array, a tensor, or a list of them
_KINDS = "a path, a PIL image, an array, a tensor or a list of them"
# What Pillow takes of each channel for a grey image.
_LUMA = (0.299, 0.587, 0.114)


def images_of(image: ImageInput, name: str = "image") -> list[Tensor]:
    """Return images as (3, H, W) float32 tensors in [0, 1].

    Args:
        image: Paths or bytes of image files; PIL images of any mode, turned as their EXIF data says; arrays
            (H, W), (H, W, 1, 3 or 4) or (B, H, W, 1, 3 or 4); tensors (1, 3 or 4, H, W) or (B, 1, 3 or 4, H,
            W); or a list of them, of any sizes. Transparent parts become white. Integers are uint8 or uint16,
            floats are in [0, 1].
        name: What messages call it.

    Raises:
        TypeError: something else.
        ValueError: another shape or type of numbers, numbers out of range, a file that holds no image, or no
            images.
    """
    return _each(image, name, "white", mask=False)


def masks_of(mask: ImageInput, name: str = "mask_image") -> list[Tensor]:
    """Return masks as (H, W) bool tensors: True where a mask is white (128 of 255 and up).

    A transparent part is the opposite of what is opaque: the hole of a black mask is white, what surrounds
    strokes of white is black.

    Args:
        mask: Paths or bytes of image files; PIL images; arrays (H, W), (H, W, 1, 3 or 4) or (B, H, W);
            tensors (H, W), (B, H, W) or (B, 1, H, W); or a list of them. Bool, float in [0, 1], or integers
            to 255 (uint16: to 65535); integers of 0 and 1 alone are read as black and white.
        name: What messages call it.

    Raises:
        TypeError: something else.
        ValueError: another shape or type of numbers, numbers out of range, a file that holds no image, no
            masks, or a transparent part beside both black and white.
    """
    on_white, on_black = (_each(mask, name, colour, mask=True) for colour in ("white", "black"))
    return [_decided(white >= 0.5, black >= 0.5, name) for white, black in zip(on_white, on_black)]


def _decided(on_white: Tensor, on_black: Tensor, name: str) -> Tensor:
    opaque = on_white == on_black
    if bool(opaque.all()):
        return on_white
    if not opaque.any() or on_white[opaque].min() != on_white[opaque].max():
        raise ValueError(f"{name} must be opaque, or black or white alone beside its transparent part")
    return on_black if on_white[opaque][0] else on_white


def _each(value: Any, name: str, background: str, *, mask: bool) -> list[Tensor]:
    """Return images (3, H, W), or masks (H, W), as float32 in [0, 1]."""
    if isinstance(value, PipelineOutput):
        value = value.images
    if isinstance(value, (list, tuple)):
        found = [one for part in value for one in _each(part, name, background, mask=mask)]
        if not found:
            raise ValueError(f"{name} must be at least one {'mask' if mask else 'image'}, got an empty list")
        return found
    if isinstance(value, (str, os.PathLike, bytes, Image.Image)):
        value = np.asarray(_opened(value, name, background))
    if isinstance(value, np.ndarray):
        native = value.astype(value.dtype.newbyteorder("="), order="C")
        values = _of_array(_unit(torch.from_numpy(native), name, mask), mask)
        expected = "(H, W) or (B, H, W)" if mask else "(B, H, W, 3)"
    elif isinstance(value, Tensor):
        values = _of_tensor(_unit(value.detach().cpu(), name, mask), mask)
        expected = "(H, W), (B, H, W) or (B, 1, H, W)" if mask else "(B, 3, H, W)"
    else:
        raise TypeError(f"{name} must be {_KINDS}, got {type(value).__name__}")
    if values is None or values.shape[-1] not in (1, 3, 4):
        raise ValueError(f"{name} must be {expected}, got shape {tuple(value.shape)}")
    if 0 in value.shape:
        raise ValueError(f"{name} must have pixels, got shape {tuple(value.shape)}")
    if values.shape[-1] == 4:
        values, alpha = values[..., :3], values[..., 3:]
        values = values * alpha + (1 - alpha) * (background == "white")
    if not mask:
        return list(values.permute(0, 3, 1, 2).expand(-1, 3, -1, -1))
    return list(values[..., 0] if values.shape[-1] == 1 else (values * values.new_tensor(_LUMA)).sum(-1))


def _opened(source: str | os.PathLike[str] | bytes | Image.Image, name: str, background: str) -> Image.Image:
    try:
        return rgb(source, background) if isinstance(source, Image.Image) else decode(source, background)
    except UnreadableImage as error:
        shown = os.fspath(source) if isinstance(source, (str, os.PathLike)) else name
        raise ValueError(f"{shown} {error}") from None


def _of_array(values: Tensor, mask: bool) -> Tensor | None:
    """Return (B, H, W, C), or None for a shape that an array does not have."""
    if values.dim() == 2:
        return values[None, ..., None]
    if values.dim() == 3:
        return values[..., None] if mask and values.shape[-1] not in (1, 3, 4) else values[None]
    return values if values.dim() == 4 and not mask else None


def _of_tensor(values: Tensor, mask: bool) -> Tensor | None:
    """Return (B, H, W, C), or None for a shape that a tensor does not have."""
    if mask:
        values = values.squeeze(1) if values.dim() == 4 and values.shape[1] == 1 else values
        values = values[None] if values.dim() == 2 else values
        return values[..., None] if values.dim() == 3 else None
    values = values[None] if values.dim() == 3 else values
    return values.movedim(1, -1) if values.dim() == 4 else None


def _unit(values: Tensor, name: str, mask: bool) -> Tensor:
    """Return numbers as float32 in [0, 1]."""
    if values.is_floating_point():
        if values.numel() and not bool(((values >= 0) & (values <= 1)).all()):
            low, high = float(values.min()), float(values.max())
            raise ValueError(f"{name} must be in [0, 1] if float, got {low:g} to {high:g}")
        return values.float()
    if values.dtype == torch.bool:
        return values.float()
    if values.is_complex() or not (mask or values.dtype in (torch.uint8, torch.uint16)):
        raise ValueError(f"{name} must be uint8, uint16, bool, or float in [0, 1], got {values.dtype}")
    deep, values = values.dtype == torch.uint16, values.long()
    low, high = (int(values.min()), int(values.max())) if values.numel() else (0, 0)
    if deep and not (mask and high <= 255):
        return ((values + 128) // 257).float() / 255
    if low < 0 or high > 255:
        raise ValueError(f"{name} must be between 0 and 255, got {low} to {high}")
    return values.float() if mask and high <= 1 else values.float() / 255
