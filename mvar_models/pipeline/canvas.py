"""The square that an edit draws: cut from an image of any size, and pasted back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mvar_models.sampling.inpainting import fill_holes

# Width of the blend as a share of the square's side.
_FEATHER = 1 / 32


@dataclass(frozen=True)
class Canvas:
    """An image, the part of it that is drawn, and the square that the model sees.

    Attributes:
        image: (3, H, W) float32 in [0, 1].
        redrawn: (H, W) bool.
        left: First column of the square; negative where the square begins left of the image.
        top: First row of the square.
        side: Its side in pixels.
    """

    image: Tensor
    redrawn: Tensor
    left: int
    top: int
    side: int

    @classmethod
    def of(cls, image: Tensor, redrawn: Tensor, crop: int | None = None) -> Canvas:
        """Choose the square: the smallest around the whole image, or around the mask.

        Args:
            image: (3, H, W) float32 in [0, 1].
            redrawn: (H, W) bool.
            crop: Pixels to leave around what is drawn; None takes the whole image.
        """
        height, width = redrawn.shape
        top, bottom, left, right = 0, height, 0, width
        if crop is not None and redrawn.any():
            rows, columns = redrawn.any(1).nonzero(), redrawn.any(0).nonzero()
            top, bottom = max(int(rows[0]) - crop, 0), min(int(rows[-1]) + 1 + crop, height)
            left, right = max(int(columns[0]) - crop, 0), min(int(columns[-1]) + 1 + crop, width)
        side = max(bottom - top, right - left)
        return cls(
            image, redrawn, _placed(left, right, side, width), _placed(top, bottom, side, height), side
        )

    def square(self, resolution: int) -> tuple[Tensor, Tensor]:
        """Return what the model sees: an image (3, R, R) in [-1, 1], and where it is drawn, (R, R) bool.

        What lies outside the image repeats its edge and is drawn, as nothing is known of it.
        """
        rows, inside_rows = self._lines(self.top, self.image.shape[1])
        columns, inside_columns = self._lines(self.left, self.image.shape[2])
        image = self.image[:, rows][:, :, columns]
        redrawn = self.redrawn[rows][:, columns] | ~(inside_rows[:, None] & inside_columns)
        if self.side != resolution:
            # A pixel of which any part is drawn is drawn.
            redrawn = F.adaptive_max_pool2d(redrawn[None].float(), resolution)[0] > 0
        return _resized(image, resolution) * 2 - 1, redrawn

    def restore(self, drawn: Tensor, paste: bool, feather: int | None) -> Tensor:
        """Put what was drawn back in its place.

        Args:
            drawn: (3, R, R) float32 in [0, 1], the drawn square.
            paste: Keep the pixels outside the mask as they were; otherwise the whole square is replaced.
            feather: Width of the blend inside the mask, in pixels of the image; default: side / 32.

        Returns:
            (3, H, W) float32 in [0, 1].
        """
        height, width = self.redrawn.shape
        top, left = max(self.top, 0), max(self.left, 0)
        bottom, right = min(self.top + self.side, height), min(self.left + self.side, width)
        square = _resized(drawn.to(self.image), self.side)
        result = self.image.clone()
        result[:, top:bottom, left:right] = square[
            :, top - self.top : bottom - self.top, left - self.left : right - self.left
        ]
        if not paste:
            return result
        weight = blend_weights(self.redrawn, round(self.side * _FEATHER) if feather is None else feather)
        # Blending with what surrounds the hole and not with what was in it, of which no trace should stay.
        around = fill_holes(self.image[None], self.redrawn[None])[0]
        blended = torch.where(weight < 1, around + weight * (result - around), result)
        return torch.where(self.redrawn, blended, self.image)

    def _lines(self, first: int, size: int) -> tuple[Tensor, Tensor]:
        """Return the rows (or columns) of the square in the image, and which of them lie in it."""
        lines = torch.arange(first, first + self.side, device="cpu")
        return lines.clamp(0, size - 1), (lines >= 0) & (lines < size)


def blend_weights(redrawn: Tensor, feather: int) -> Tensor:
    """Return the weight of what is drawn, (H, W): 0 where the image is kept, 1 from `feather` pixels on."""
    # Distance to the nearest kept pixel in rows plus columns, which takes one pass each way along both.
    distance = torch.where(redrawn, math.inf, torch.zeros_like(redrawn, dtype=torch.float32))
    for dim, size in enumerate(redrawn.shape):
        index = torch.arange(size, dtype=torch.float32, device=redrawn.device)
        index = index[:, None] if dim == 0 else index
        before = (distance - index).cummin(dim).values + index
        after = (distance + index).flip(dim).cummin(dim).values.flip(dim) - index
        distance = torch.minimum(before, after)
    return (distance / max(feather, 1)).clamp(max=1)


def extended(image: Tensor, padding: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
    """Enlarge an image, for out-painting.

    Args:
        image: (3, H, W).
        padding: Pixels to add on the left, at the top, on the right and at the bottom.

    Returns:
        The image (3, H', W') with its edge repeated, and where it is new, (H', W') bool.
    """
    left, top, right, bottom = padding
    large = F.pad(image[None], (left, right, top, bottom), mode="replicate")[0]
    new = torch.ones(large.shape[1:], dtype=torch.bool, device=large.device)
    new[top : top + image.shape[1], left : left + image.shape[2]] = False
    return large, new


def _placed(first: int, last: int, side: int, size: int) -> int:
    """Return where a span of `side` begins that holds first .. last, inside 0 .. size if it fits."""
    start = first - (side - (last - first)) // 2
    if side > size:
        return math.floor((size - side) / 2)
    return min(max(start, 0), size - side)


def _resized(image: Tensor, side: int) -> Tensor:
    if image.shape[-1] == side:
        return image
    resized = F.interpolate(image[None], (side, side), mode="bicubic", align_corners=False, antialias=True)
    return resized[0].clamp(0, 1)
