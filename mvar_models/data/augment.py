"""Light geometric augmentation for small datasets whose classes a mirror would change (digits): shift, turn, scale, shear."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

MAX_SHIFT = 0.06  # of the side
MAX_TURN = 0.12  # radians
MAX_SCALE = 0.08
MAX_SHEAR = 0.08
MOVES = 6


def random_moves(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 6) in [-1, 1]: shift x, shift y, turn, scale x, scale y, shear."""
    return rng.uniform(-1, 1, (count, MOVES))


def affine(images: Tensor, moves: np.ndarray) -> Tensor:
    """A small affine map for each picture of (n, 3, R, R), its moves (n, 6); what enters from outside repeats the border."""
    shift_x, shift_y, turn, scale_x, scale_y, shear = moves.T
    cos, sin = np.cos(turn * MAX_TURN), np.sin(turn * MAX_TURN)
    grow_x, grow_y, slant = 1 + scale_x * MAX_SCALE, 1 + scale_y * MAX_SCALE, shear * MAX_SHEAR
    rows = [
        [cos * grow_x, (slant - sin) * grow_y, 2 * MAX_SHIFT * shift_x],
        [sin * grow_x, cos * grow_y, 2 * MAX_SHIFT * shift_y],
    ]
    matrix = torch.from_numpy(np.array(rows)).permute(2, 0, 1).to(images.dtype)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
