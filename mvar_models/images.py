"""Tensors to images and back, and images side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def grid(pictures: Sequence[Image.Image], columns: int, gap: int = 2) -> Image.Image:
    """One picture with all `pictures` (of one size) row by row, on white."""
    if not pictures:
        raise ValueError("a grid needs at least one picture")
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    canvas = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for index, picture in enumerate(pictures):
        canvas.paste(picture, ((index % columns) * (width + gap), (index // columns) * (height + gap)))
    return canvas


def to_tensor(picture: Image.Image) -> Tensor:
    """(3, R, R) float32 in [-1, 1] of an RGB picture."""
    return torch.from_numpy(np.array(picture, dtype=np.uint8)).permute(2, 0, 1).float() / 127.5 - 1


def to_pictures(images: Tensor) -> list[Image.Image]:
    """(n, 3, R, R) in [-1, 1] as n pictures."""
    values = ((images.detach().float().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return [Image.fromarray(value) for value in values.permute(0, 2, 3, 1).contiguous().numpy()]
