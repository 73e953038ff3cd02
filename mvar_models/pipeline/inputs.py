"""Images and masks of every usual kind as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

ImageInput = Any  # a PIL image, an array, a tensor, or a list of them
_KINDS = "a PIL image, an array, a tensor or a list of them"
_WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
# Pillow cuts these to 8 bits without scaling, or their range is unknown.
_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


def images_of(image: ImageInput, name: str = "image") -> list[Tensor]:
    """Return images as (3, H, W) float32 tensors in [0, 1].

    Args:
        image: PIL images of any 8-bit mode, whose transparent parts become white; arrays (H, W), (H, W, 1 or
            3) or (B, H, W, 3); tensors (1 or 3, H, W) or (B, 1 or 3, H, W); or a list of them, of any sizes.
            Integers are uint8, floats are in [0, 1].
        name: What messages call it.

    Raises:
        TypeError: something else.
        ValueError: another shape or type of numbers, numbers out of range, or no images.
    """
    found = _each(image, name, _pil_image, _array_images, _tensor_images)
    if not found:
        raise ValueError(f"{name} must be at least one image, got an empty list")
    return [each.expand(3, -1, -1) for each in found]


def masks_of(mask: ImageInput, name: str = "mask_image") -> list[Tensor]:
    """Return masks as (H, W) bool tensors: True where a mask is white (128 of 255 and up).

    Args:
        mask: PIL images; arrays (H, W), (H, W, 1 or 3) or (B, H, W); tensors (H, W), (B, H, W) or (B, 1, H,
            W); or a list of them. Bool, float in [0, 1], or integers to 255; integers of 0 and 1 alone are
            read as black and white.
        name: What messages call it.

    Raises:
        TypeError: something else.
        ValueError: another shape or type of numbers, numbers out of range, or no masks.
    """
    found = _each(mask, name, _pil_mask, _array_masks, _tensor_masks)
    if not found:
        raise ValueError(f"{name} must be at least one mask, got an empty list")
    return [each >= 0.5 for each in found]


def _each(value: Any, name: str, of_pil: Any, of_array: Any, of_tensor: Any) -> list[Tensor]:
    if isinstance(value, (list, tuple)):
        return [one for part in value for one in _each(part, name, of_pil, of_array, of_tensor)]
    if isinstance(value, Image.Image):
        return [of_pil(value, name)]
    if isinstance(value, np.ndarray):
        return list(of_array(value, name))
    if isinstance(value, Tensor):
        return list(of_tensor(value.detach().cpu(), name))
    raise TypeError(f"{name} must be {_KINDS}, got {type(value).__name__}")


def _pil_image(image: Image.Image, name: str) -> Tensor:
    _check_pil(image, name)
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255


def _pil_mask(mask: Image.Image, name: str) -> Tensor:
    _check_pil(mask, name)
    # White decides; how opaque it is does not.
    return torch.from_numpy(np.array(mask.convert("RGB").convert("L"))).float() / 255


def _check_pil(image: Image.Image, name: str) -> None:
    if image.mode in _DEEP_MODES:
        raise ValueError(f"{name} must have 8 bits per channel, got a PIL image of mode {image.mode}")
    _check_pixels(image.size[::-1], name)


def _array_images(array: np.ndarray, name: str) -> Tensor:
    values = _unit(torch.from_numpy(np.ascontiguousarray(array)), name)
    if values.dim() == 2:
        values = values.unsqueeze(-1)
    if values.dim() == 3:
        values = values.unsqueeze(0)
    _check_shape(values.dim() == 4 and values.shape[-1] in (1, 3), array.shape, name, "(B, H, W, 3)")
    return values.permute(0, 3, 1, 2)


def _tensor_images(tensor: Tensor, name: str) -> Tensor:
    values = _unit(tensor, name)
    if values.dim() == 3:
        values = values.unsqueeze(0)
    _check_shape(values.dim() == 4 and values.shape[1] in (1, 3), tensor.shape, name, "(B, 3, H, W)")
    return values


def _array_masks(array: np.ndarray, name: str) -> Tensor:
    values = _unit(torch.from_numpy(np.ascontiguousarray(array)), name, mask=True)
    if values.dim() == 2:
        values = values.unsqueeze(0)
    elif values.dim() == 3 and values.shape[-1] in (1, 3):
        values = values.mean(-1).unsqueeze(0)
    _check_shape(values.dim() == 3, array.shape, name, "(H, W) or (B, H, W)")
    return values


def _tensor_masks(tensor: Tensor, name: str) -> Tensor:
    values = _unit(tensor, name, mask=True)
    if values.dim() == 4 and values.shape[1] == 1:
        values = values.squeeze(1)
    elif values.dim() == 2:
        values = values.unsqueeze(0)
    _check_shape(values.dim() == 3, tensor.shape, name, "(H, W), (B, H, W) or (B, 1, H, W)")
    return values


def _unit(values: Tensor, name: str, mask: bool = False) -> Tensor:
    """Return numbers as float32 in [0, 1]."""
    if values.is_floating_point():
        if values.numel() and not bool(((values >= 0) & (values <= 1)).all()):
            low, high = float(values.min()), float(values.max())
            raise ValueError(f"{name} must be in [0, 1] if float, got {low:g} to {high:g}")
        return values.float()
    if values.dtype == torch.bool and mask:
        return values.float()
    if values.dtype != torch.uint8 and (not mask or values.is_complex()):
        raise ValueError(f"{name} must be uint8, or float in [0, 1], got {values.dtype}")
    low, high = (int(values.min()), int(values.max())) if values.numel() else (0, 0)
    if low < 0 or high > 255:
        raise ValueError(f"{name} must be between 0 and 255, got {low} to {high}")
    return values.float() if mask and high <= 1 else values.float() / 255


def _check_shape(fits: bool, shape: Sequence[int], name: str, expected: str) -> None:
    if not fits:
        raise ValueError(f"{name} must be {expected}, got shape {tuple(shape)}")
    _check_pixels(shape, name)


def _check_pixels(shape: Sequence[int], name: str) -> None:
    if 0 in shape:
        raise ValueError(f"{name} must have pixels, got shape {tuple(shape)}")
