"""Bilinear resizing as TensorFlow 1 does it, on which published FIDs depend."""

from __future__ import annotations

import torch
from torch import Tensor


def tf1_resize(images: Tensor, side: int) -> Tensor:
    """Resize images bilinearly with `align_corners` false, no half-pixel centres and no antialiasing.

    Pixel i of the result lies at i * H / side of the input, so the last rows and columns repeat the border.
    The arithmetic is that of TensorFlow's CPU kernel: columns first, then rows, a + (b - a) * t.

    Args:
        images: (N, C, H, W), floating point.
        side: Height and width of the result.

    Returns:
        (N, C, side, side), of the type of `images`.
    """
    below, above, weight = _neighbours(images.shape[3], side, images)
    left, right = images[..., below], images[..., above]
    across = left + (right - left) * weight
    below, above, weight = _neighbours(images.shape[2], side, images)
    top, bottom = across[:, :, below], across[:, :, above]
    return top + (bottom - top) * weight[:, None]


def _neighbours(size: int, side: int, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two input positions of each output position, and the weight of the second: (side,) each."""
    # Positions are float32 whatever the images are: 32 / 299 is rounded there, and so are its multiples.
    place = torch.arange(side, device=images.device, dtype=torch.float32) * torch.tensor(
        size / side, dtype=torch.float32, device=images.device
    )
    below = place.long().clamp_max(size - 1)
    above = (below + 1).clamp_max(size - 1)
    return below, above, (place - below).to(images.dtype)
