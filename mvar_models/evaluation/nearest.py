"""Distances between feature vectors: near-copies, and precision, recall, density and coverage.

Distances are computed in float64, a block of rows at a time, so that those of whole numbers, such as pixels,
are exact. Distances that differ by less than `TIE` of themselves are equal, so that rounding, which depends
on the block, decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mvar_models.devices import fit_batch

PRECISION_NEIGHBOURS, COVERAGE_NEIGHBOURS = 3, 5
# A near-copy is as close to a training image as the closest 5 % of real images are.
COPY_QUANTILE = 0.05
TIE = 1e-10
# Numbers in a block: 64 MB of float64.
_NUMBERS = 1 << 23
# Of the squared norms: differences below it are rounding, so a copy is at distance 0 exactly.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Neighbourhoods:
    """Which images of two sets lie in the other set's neighbourhoods.

    Attributes:
        inside: (n,) bool, drawn images within the neighbourhood of some reference image (k = 3).
        around: (n,) int64, in how many reference images' neighbourhoods (k = 5) each drawn image lies.
        reached: (m,) bool, reference images within the neighbourhood of some drawn image (k = 3).
        covered: (m,) bool, reference images whose own neighbourhood (k = 5) has a drawn image.
    """

    inside: Tensor
    around: Tensor
    reached: Tensor
    covered: Tensor

    @property
    def precision(self) -> float:
        """Share of drawn images that look like reference images."""
        return self.inside.double().mean().item()

    @property
    def recall(self) -> float:
        """Share of reference images that the drawn images reach."""
        return self.reached.double().mean().item()

    @property
    def density(self) -> float:
        """Mean number of neighbourhoods that a drawn image lies in, over k: 1 for equal distributions."""
        return self.around.double().mean().item() / COVERAGE_NEIGHBOURS

    @property
    def coverage(self) -> float:
        """Share of reference images that have a drawn image nearby."""
        return self.covered.double().mean().item()


def neighbourhoods(drawn: Tensor, reference: Tensor, *, half: bool = False) -> Neighbourhoods:
    """Compute precision and recall (arXiv 1904.06991), density and coverage (arXiv 2002.09797) in one pass.

    A neighbourhood reaches to the k-th nearest image of the same set, and an image at just that distance lies
    within, as in Kynkaanniemi's code.

    Args:
        drawn: (n, D) float32.
        reference: (m, D) float32, on the same device.
        half: Distances in float16, as in OpenAI's evaluator, where rounding makes its own ties; see
            `squared_distances`.

    Raises:
        ValueError: a set has no more than five images.
    """
    if not half:
        drawn, reference = centred(drawn, reference)
    near, wide = map(upper, radii(reference, (PRECISION_NEIGHBOURS, COVERAGE_NEIGHBOURS), half=half))
    (drawn_near,) = map(upper, radii(drawn, (PRECISION_NEIGHBOURS,), half=half))
    inside, around = [], []
    reached = torch.zeros(len(reference), dtype=torch.bool, device=reference.device)
    covered = torch.zeros_like(reached)
    for start, distances in blocks(drawn, reference, half=half):
        inside.append((distances <= near).any(1))
        within = distances <= wide
        around.append(within.sum(1))
        covered |= within.any(0)
        reached |= (distances <= drawn_near[start : start + len(distances), None]).any(0)
    return Neighbourhoods(torch.cat(inside).cpu(), torch.cat(around).cpu(), reached.cpu(), covered.cpu())


class Nearest:
    """The nearest of many vectors to each of some, which may come a batch at a time.

    Args:
        vectors: (n, D).

    Attributes:
        indices: (n,) int64, the nearest so far; -1 before any has come.
    """

    def __init__(self, vectors: Tensor) -> None:
        self._origin = vectors[:1]
        self._vectors, _ = centred(vectors, self._origin)
        self._squared = torch.full((len(vectors),), torch.inf, dtype=torch.float64, device=vectors.device)
        self.indices = torch.full((len(vectors),), -1, device=vectors.device)

    def update(self, others: Tensor, indices: np.ndarray | Tensor) -> None:
        """Take in (m, D) other vectors and their (m,) numbers."""
        if not len(others):
            return
        # A copy: an array may be a read-only view of a file.
        copied = indices.copy() if isinstance(indices, np.ndarray) else indices
        numbers = torch.as_tensor(copied, device=self.indices.device)
        others, _ = centred(others.to(self._vectors.device), self._origin)
        for start, distances in blocks(self._vectors, others):
            least = distances.min(1).values
            equal = distances <= upper(least)[:, None]
            first = numbers.where(equal, torch.iinfo(numbers.dtype).max).min(1).values
            self._take(slice(start, start + len(least)), least, first)

    def merge(self, others: list[tuple[Tensor, Tensor]]) -> None:
        """Take in the `state` of other processes."""
        for squared, indices in others:
            self._take(slice(None), squared.to(self._squared), indices.to(self.indices))

    def _take(self, rows: slice, squared: Tensor, indices: Tensor) -> None:
        """Of equally near ones the lowest number counts, whatever the order they came in."""
        known = self._squared[rows]
        equal = (squared <= upper(known)) & (known <= upper(squared)) & known.isfinite()
        closer = torch.where(equal, indices < self.indices[rows], squared < known)
        self._squared[rows] = torch.minimum(known, squared)
        self.indices[rows] = torch.where(closer, indices, self.indices[rows])

    @property
    def state(self) -> tuple[Tensor, Tensor]:
        """Squared distances and indices on the CPU, for `merge`."""
        return self._squared.cpu(), self.indices.cpu()

    @property
    def distances(self) -> np.ndarray:
        """(n,) float64, the distance to the nearest."""
        distances: np.ndarray = self._squared.sqrt().cpu().numpy()
        return distances


def nearest_distances(vectors: np.ndarray | Tensor, others: np.ndarray | Tensor) -> np.ndarray:
    """Return (n,) distances of (n, D) vectors to the nearest of (m, D) others."""
    known, asked = (
        (values if isinstance(values, Tensor) else torch.from_numpy(values)).float()
        for values in (others, vectors)
    )
    nearest = Nearest(asked)
    nearest.update(known, torch.arange(len(known), device=known.device))
    return nearest.distances


def nearest_other_distances(vectors: Tensor) -> np.ndarray:
    """Return (n,) distances of vectors (n, D) to the nearest other one."""
    (squared,) = radii(centred(vectors, vectors)[0], (1,))
    distances: np.ndarray = squared.double().sqrt().cpu().numpy()
    return distances


@dataclass(frozen=True)
class NearestTraining:
    """The nearest training images.

    Attributes:
        name: Of the training set.
        count: Number of training images.
        distances: (n,) of each drawn image to the nearest training image.
        indices: (n,) which one that is.
        real: Distances of real images to the nearest (other) training image.
        real_name: What those real images are.
    """

    name: str
    count: int
    distances: np.ndarray
    indices: np.ndarray
    real: np.ndarray
    real_name: str

    @property
    def near(self) -> np.ndarray:
        """(n,) bool: as close to a training image as the closest 5 % of real images are."""
        near: np.ndarray = self.distances <= copy_distance(self.real)
        return near


def leave_one_out(
    drawn: Tensor, training: Tensor, indices: np.ndarray | Tensor, name: str
) -> NearestTraining:
    """Compare drawn images with training images, and those with each other.

    Args:
        drawn: (n, D) features.
        training: (m, D) features, on the same device.
        indices: (m,) which images those are.
        name: Of the training set.
    """
    nearest = Nearest(drawn)
    nearest.update(training, indices)
    real, real_name = nearest_other_distances(training), "the same images, each without itself"
    return NearestTraining(
        name, len(training), nearest.distances, nearest.indices.cpu().numpy(), real, real_name
    )


def copy_distance(distances: np.ndarray) -> float:
    """Return the distance up to which an image is a near-copy: 5 % of real images are that close.

    Args:
        distances: (n,) distances of real images that are not for training to the nearest training image.
    """
    return float(np.quantile(distances, COPY_QUANTILE))


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
        rounded = _half(first, second)
        if rounded.isfinite().all():
            return rounded
    first, second = first.double(), second.double()
    norms = first.square().sum(1)[:, None] + second.square().sum(1)
    squared = (norms - 2 * first @ second.T).clamp_min(0)
    return squared.masked_fill(squared < _ROUNDING * norms, 0)


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
    """Compute each vector's squared distance to its k-th nearest other vector, (n,) for each k.

    Args:
        vectors: (n, D).
        neighbours: The values of k.
        half: As for `squared_distances`.

    Raises:
        ValueError: there are not more than k vectors.
    """
    most = max(neighbours)
    if len(vectors) <= most:
        raise ValueError(f"the {most} nearest neighbours need more than {most} images, got {len(vectors)}")
    parts = []
    for start, distances in blocks(vectors, vectors, half=half):
        rows = torch.arange(len(distances), device=distances.device)
        distances[rows, rows + start] = torch.inf
        parts.append(distances.topk(most, largest=False).values)
    nearest = torch.cat(parts)
    return [nearest[:, k - 1] for k in neighbours]


def _half(first: Tensor, second: Tensor) -> Tensor:
    def rounded(values: Tensor) -> Tensor:
        return values.half().float()

    first, second = rounded(first), rounded(second)
    norms1, norms2 = (rounded(rounded(each.square()).sum(1)) for each in (first, second))
    products = rounded(2 * rounded(first @ second.T))
    return rounded(rounded(norms1[:, None] - products) + norms2).clamp_min(0)
