"""Light geometric augmentation for classes that a mirror would change, such as digits."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

MAX_SHIFT = 0.06  # of the side
MAX_ROTATION = 0.12  # radians
MAX_SCALE = 0.08
MAX_SHEAR = 0.08
_NUM_PARAMETERS = 6


def random_affine(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draw (count, 6) parameters in [-1, 1]: shift x, shift y, rotation, scale x, scale y, shear."""
    return rng.uniform(-1, 1, (count, _NUM_PARAMETERS))


def affine(images: Tensor, parameters: np.ndarray) -> Tensor:
    """Apply a small affine map to each image; pixels from outside repeat the border.

    Args:
        images: (n, 3, R, R).
        parameters: (n, 6), as `random_affine` draws them.
    """
    shift_x, shift_y, rotation, scale_x, scale_y, shear = parameters.T
    cos, sin = np.cos(rotation * MAX_ROTATION), np.sin(rotation * MAX_ROTATION)
    grow_x, grow_y, slant = 1 + scale_x * MAX_SCALE, 1 + scale_y * MAX_SCALE, shear * MAX_SHEAR
    # affine_grid's coordinates run from -1 to 1, so a shift by a fraction of the side counts twice.
    rows = [
        [cos * grow_x, (slant - sin) * grow_y, 2 * MAX_SHIFT * shift_x],
        [sin * grow_x, cos * grow_y, 2 * MAX_SHIFT * shift_y],
    ]
    matrix = torch.from_numpy(np.array(rows)).permute(2, 0, 1).to(images.dtype)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
