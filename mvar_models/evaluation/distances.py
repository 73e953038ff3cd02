"""Squared distances between many feature vectors, a block of rows at a time.

They are computed in float64, so that those of whole numbers, such as pixels, are exact. Distances that differ
by less than `TIE` of themselves are equal, so that rounding, which depends on the block, decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mvar_models.devices import fit_batch

# 64 MB of float64.
_NUMBERS = 1 << 23
# Of the squared norms: differences below it are rounding, so a copy is at distance 0 exactly.
_ROUNDING = 1e-12
TIE = 1e-10


def squared_distances(first: Tensor, second: Tensor, *, half: bool = False) -> Tensor:
    """Compute squared Euclidean distances between all pairs of vectors.

    Args:
        first: (n, D).
        second: (m, D).
        half: Round every step to float16 as OpenAI's evaluator does on a GPU, sums in float32; a block in
            which that overflows is computed in float64.

    Returns:
        (n, m) float64, or float32 with `half`.
    """
    if half:
        found = _half(first, second)
        if found.isfinite().all():
            return found
    first, second = first.double(), second.double()
    norms = first.square().sum(1)[:, None] + second.square().sum(1)
    found = (norms - 2 * first @ second.T).clamp_min(0)
    return found.masked_fill(found < _ROUNDING * norms, 0)


def blocks(first: Tensor, second: Tensor, *, half: bool = False) -> Iterator[tuple[int, Tensor]]:
    """Yield (start, distances) a block of rows of `first` at a time; arguments as `squared_distances`."""
    rows = fit_batch(_NUMBERS, max(1, len(second)))
    for start in range(0, len(first), rows):
        yield start, squared_distances(first[start : start + rows], second, half=half)


def centred(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return both sets in float64, moved by the first vector of the second.

    That changes no distance, makes rounding smaller, and keeps whole numbers whole.
    """
    origin = second[:1].double()
    return first.double() - origin, second.double() - origin


def upper(squared: Tensor) -> Tensor:
    """Return the largest squared distances that are equal to these."""
    return squared * (1 + TIE)


def radii(vectors: Tensor, neighbours: tuple[int, ...], *, half: bool = False) -> list[Tensor]:
    """Compute each vector's squared distance to its k-th nearest other vector.

    Args:
        vectors: (n, D).
        neighbours: The values of k.
        half: As for `squared_distances`.

    Returns:
        (n,) for each k, of the type of the distances.

    Raises:
        ValueError: there are not more than k vectors.
    """
    most = max(neighbours)
    if len(vectors) <= most:
        raise ValueError(f"the {most} nearest neighbours need more than {most} images, got {len(vectors)}")
    found = []
    for start, distances in blocks(vectors, vectors, half=half):
        rows = torch.arange(len(distances), device=distances.device)
        distances[rows, rows + start] = torch.inf
        found.append(distances.topk(most, largest=False).values)
    nearest = torch.cat(found)
    return [nearest[:, k - 1] for k in neighbours]


def _half(first: Tensor, second: Tensor) -> Tensor:
    """The same with every intermediate result rounded to float16."""

    def rounded(values: Tensor) -> Tensor:
        return values.half().float()

    first, second = rounded(first), rounded(second)
    norms1, norms2 = (rounded(rounded(each.square()).sum(1)) for each in (first, second))
    products = rounded(2 * rounded(first @ second.T))
    return rounded(rounded(norms1[:, None] - products) + norms2).clamp_min(0)
