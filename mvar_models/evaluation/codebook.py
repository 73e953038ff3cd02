"""How a VQVAE's codebook is used: which codes are drawn at each scale, and how evenly."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def code_counts(indices: Tensor, sides: Sequence[int], vocab_size: int) -> Tensor:
    """Count how often each code occurs at each scale.

    Args:
        indices: (n, L) int64, scales packed coarse to fine.
        sides: grid side of each of the S scales.
        vocab_size: number of codes V.

    Returns:
        (S, V) float32.
    """
    areas = [side * side for side in sides]
    return torch.stack(
        [torch.bincount(codes.flatten(), minlength=vocab_size).float() for codes in indices.split(areas, 1)]
    )


def codes_used(counts: Tensor) -> Tensor:
    """Share of the codes that occur at each scale: counts (..., V) -> (...)."""
    return (counts > 0).float().mean(-1)


def perplexity(counts: Tensor) -> Tensor:
    """Number of equally frequent codes with the same entropy: counts (..., V) -> (...), between 1 and V."""
    share = counts / counts.sum(-1, keepdim=True)
    return torch.special.entr(share).sum(-1).exp()
