"""Markov-VAR's position code of queries and keys (arXiv 2511.23334), as its checkpoints need it.

It is built like a 2-D rotary code, but the two features of a pair turn by different angles, one by the row's,
one by the column's. So it changes lengths and is not relative, and a textbook rotary code in its place moves
the logits by almost 1 %. Scores of normalised queries and keys must be taken after it: attention that
normalises inside the kernel cannot be used.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_BASE = 10000.0


def rotary_angles(sides: Sequence[int], head_dim: int) -> tuple[Tensor, Tensor]:
    """Return the angles of the rows and of the columns of all tokens, (L, head_dim / 2) float32 each.

    All scales share the coordinates of the finest one, aligned at the top left corner.

    Args:
        sides: Grid side of each scale, coarse to fine.
        head_dim: Features per head.

    Raises:
        ValueError: `head_dim` is not a multiple of 4.
    """
    if head_dim % 4:
        raise ValueError(f"head_dim must be a multiple of 4 for the position code, got {head_dim}")
    quarter = head_dim // 4
    frequencies = _BASE ** (-4 * torch.arange(quarter, dtype=torch.float32, device="cpu") / head_dim)
    rows, columns = [], []
    for side in sides:
        # Divided before it is multiplied: float32 rounds the released positions in this order.
        places = torch.arange(side, dtype=torch.float32, device="cpu") / side * sides[-1]
        rows.append(places.repeat_interleave(side))
        columns.append(places.repeat(side))
    row, column = (torch.cat(parts)[:, None] * frequencies for parts in (rows, columns))
    return torch.cat([row, row], dim=1), torch.cat([column, column], dim=1)


def rotate(vectors: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Turn each pair (v1, v2) of features into (v1 cos row - v2 sin row, v2 cos column + v1 sin column).

    Args:
        vectors: (B, n, H, D); v1 is the first half of the features, v2 the second.
        row: (n, D / 2), from `rotary_angles`.
        column: (n, D / 2).
    """
    first, second = vectors.float().chunk(2, dim=-1)
    row, column = row[:, None], column[:, None]  # one for all heads
    turned = torch.cat(
        [first * row.cos() - second * row.sin(), second * column.cos() + first * column.sin()], dim=-1
    )
    return turned.to(vectors.dtype)
