"""Kernel Inception distance (Binkowski et al., arXiv 1801.01401): MMD^2 with the kernel (x . y / D + 1)^3.

The estimate is unbiased, so that it may be compared between sets of different sizes, and may be negative.
That of a set and itself is, since pairs within a set leave out those of a vector and itself.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SUBSET, SUBSETS = 1_000, 100


def kernel_distance(
    drawn: Tensor, reference: Tensor, *, subset: int = SUBSET, subsets: int = SUBSETS, seed: int = 0
) -> tuple[float, float]:
    """Compute the mean over random subsets, and the deviation between them.

    Args:
        drawn: (n, D) features.
        reference: (m, D) features, on the same device.
        subset: Images of each set in a subset, drawn without replacement; all of a smaller set.
        subsets: Number of subsets; one where both sets are used whole.
        seed: Decides the subsets.

    Raises:
        ValueError: a set has fewer than two images.
    """
    size = min(subset, len(drawn), len(reference))
    if size < 2:
        raise ValueError(f"the kernel distance needs at least 2 images of each, got {size}")
    if size == len(drawn) == len(reference):
        subsets = 1
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(subsets):
        first, second = (
            torch.from_numpy(rng.choice(len(each), size, replace=False)) for each in (drawn, reference)
        )
        found.append(_squared_discrepancy(drawn[first].double(), reference[second].double()))
    return float(np.mean(found)), float(np.std(found))


def _squared_discrepancy(first: Tensor, second: Tensor) -> float:
    """MMD^2 of two sets of n vectors (n, D), without the terms of a vector with itself."""
    count, dimension = first.shape

    def kernel(left: Tensor, right: Tensor) -> Tensor:
        return (left @ right.T / dimension + 1) ** 3

    own, other = kernel(first, first), kernel(second, second)
    pairs = count * (count - 1)
    within = (own.sum() - own.trace() + other.sum() - other.trace()) / pairs
    return (within - 2 * kernel(first, second).mean()).item()
