"""Tensors to images and back, and images side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor


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


def grid(images: Sequence[Image.Image], columns: int, gap: int = 2) -> Image.Image:
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
