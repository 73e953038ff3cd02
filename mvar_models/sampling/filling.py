"""Holes filled from their surroundings, so that an encoder sees nothing of what was in them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def fill_holes(images: Tensor, holes: Tensor) -> Tensor:
    """Fill holes smoothly by pull-push: every level of an image pyramid fills what the coarser one left.

    Args:
        images: (B, c, H, W).
        holes: (B, H, W) bool.

    Returns:
        (B, c, H, W): the images outside the holes, their surroundings inside. All zero where the hole is the
        whole image.

    Source: Gortler et al., The Lumigraph (1996), section 3.4.
    """
    known = (~holes).unsqueeze(1).to(images.dtype)
    return _filled(images * known, known)


def _filled(images: Tensor, known: Tensor) -> Tensor:
    """Fill where `known` (B, 1, H, W) is 0; `images` is 0 there."""
    height, width = images.shape[-2:]
    if height == 1 and width == 1:
        return images
    # ceil_mode keeps the last row of an odd side; it divides by the number of pixels inside the image.
    share = F.avg_pool2d(known, 2, ceil_mode=True, count_include_pad=False)
    sums = F.avg_pool2d(images, 2, ceil_mode=True, count_include_pad=False)
    means = torch.where(share > 0, sums / share.clamp_min(torch.finfo(share.dtype).tiny), 0.0)
    coarse = _filled(means, (share > 0).to(known.dtype))
    smooth = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    return torch.where(known > 0, images, smooth)
