"""Distances and scores of feature vectors, by their definitions: Frechet, Inception, kernel Inception.

Frechet distance (Heusel et al., arXiv 1706.08500): SciPy's `sqrtm` of the product of two covariances, which
is not symmetric, gives complex numbers whenever one has less than full rank, and the released programs then
add to the diagonal. tr (S1 S2)^1/2 is the sum of the singular values of any F1 F2^T with S = F^T F, so it is
real by construction, and SciPy is not needed.
"""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# Relative to the largest eigenvalue: what rounding to float32 leaves behind, and what is no covariance.
_ROUNDING, _WRONG = 1e-6, 1e-3


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Compute the squared Frechet distance between Gaussians that are fitted to both sets.

    It is |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2) for means m and covariances S.

    Args:
        first: (n, d) features, at least two rows.
        second: (m, d) features, at least two rows.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if max(len(first), len(second)) >= first.shape[1]:
        return FrechetReference(Moments.of(second)).distance(Moments.of(first))
    # With few vectors the n x m matrix of products is smaller than the covariances, and squares nothing.
    mean1, mean2 = first.mean(axis=0), second.mean(axis=0)
    factor1 = (first - mean1) / np.sqrt(len(first) - 1)
    factor2 = (second - mean2) / np.sqrt(len(second) - 1)
    cross = np.linalg.svd(factor1 @ factor2.T, compute_uv=False).sum()
    return _at_least_zero(((mean1 - mean2) ** 2).sum() + (factor1**2).sum() + (factor2**2).sum() - 2 * cross)


class FrechetReference:
    """One of the two Gaussians, whose root is computed once and compared with any number of others.

    Args:
        moments: Of the reference.
        name: What the vectors are, for messages.

    Raises:
        ValueError: the covariance has clearly negative eigenvalues.
    """

    def __init__(self, moments: Moments, *, name: str = "features") -> None:
        self._moments, self._name = moments, name
        covariance = moments.covariance
        values, vectors = np.linalg.eigh(covariance)
        _check_eigenvalues(values, f"the reference's {name}")
        self._trace = float(np.trace(covariance))
        self._root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T

    def distance(self, moments: Moments) -> float:
        """Compute the squared distance to the Gaussian of other moments.

        Raises:
            ValueError: they have another dimension, or their covariance has clearly negative eigenvalues.
        """
        mine, name = self._moments, self._name
        if moments.dimension != mine.dimension:
            raise ValueError(
                f"the {name} of the reference have {mine.dimension} numbers, those of the drawn images have "
                f"{moments.dimension}: they are of different networks or image sizes"
            )
        covariance = moments.covariance
        # S1 S2 and the symmetric S1^1/2 S2 S1^1/2 have the same eigenvalues; those of the latter stay real.
        values = np.linalg.eigvalsh(self._root @ covariance @ self._root)
        _check_eigenvalues(values, f"the drawn images' {name}")
        cross = np.sqrt(np.maximum(values, 0)).sum()
        means = ((moments.mean - mine.mean) ** 2).sum()
        return _at_least_zero(means + np.trace(covariance) + self._trace - 2 * cross)


class Moments:
    """Running mean and covariance of vectors of one length, mergeable over processes.

    Batches are merged by their means and scatter matrices in float64 (Chan, Golub, LeVeque 1983). Sums of raw
    outer products would lose the digits that covariance shares with the squared mean: with a mean of 1e4 and
    a deviation of 1, eight of sixteen.

    Attributes:
        count: Vectors so far; None where the file they were read from does not say.
        mean: (D,) float64.
        scatter: (D, D) float64, the sum of outer products of deviations from the mean.
    """

    def __init__(self, dimension: int) -> None:
        self.count: int | None = 0
        self.mean = np.zeros(dimension)
        self.scatter = np.zeros((dimension, dimension))
        self._covariance: np.ndarray | None = None

    @classmethod
    def of(cls, vectors: np.ndarray | Tensor) -> Moments:
        """Compute the moments of (n, D) vectors."""
        moments = cls(vectors.shape[1])
        moments.update(vectors)
        return moments

    @classmethod
    def ready(cls, mean: np.ndarray, covariance: np.ndarray, count: int | None) -> Moments:
        """Take over a mean (D,) and a covariance (D, D), divided by n - 1, of `count` vectors if known."""
        moments = cls(0)
        moments.count, moments.mean = count, np.asarray(mean, dtype=np.float64)
        moments._covariance = np.asarray(covariance, dtype=np.float64)
        return moments

    @property
    def dimension(self) -> int:
        """Length D of the vectors."""
        return len(self.mean)

    @property
    def covariance(self) -> np.ndarray:
        """(D, D) float64, divided by n - 1.

        Raises:
            ValueError: there are fewer than two vectors.
        """
        if self._covariance is not None:
            return self._covariance
        if self.count is None or self.count < 2:
            raise ValueError(f"a covariance needs at least 2 images, got {self.count}")
        return self.scatter / (self.count - 1)

    def update(self, vectors: np.ndarray | Tensor) -> None:
        """Take in (n, D) more vectors."""
        values = np.asarray(vectors.cpu() if isinstance(vectors, Tensor) else vectors, dtype=np.float64)
        if not len(values):
            return
        mean = values.mean(axis=0)
        values = values - mean
        self._merge(len(values), mean, values.T @ values)

    def merge(self, other: Moments) -> None:
        """Take in the vectors of another process."""
        if other.count:
            self._merge(other.count, other.mean, other.scatter)

    def _merge(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        assert self.count is not None, "ready moments take in no more vectors"
        total = self.count + count
        step = mean - self.mean
        self.mean = self.mean + step * (count / total)
        self.scatter += scatter
        self.scatter += np.outer(step, step) * (self.count * count / total)
        self.count = total


def rank_warning(moments: Moments, what: str) -> str | None:
    """Return why the covariance of some images, as in "drawn", has less than full rank, or None."""
    count, dimension = moments.count, moments.dimension
    if count is None or count > dimension:
        return None
    return (
        f"{count:,} {what} images for {dimension:,} numbers: the covariance has rank {count - 1:,} at "
        f"most, and the distance is too large; it takes {dimension + 1:,} images for full rank, "
        "and published figures use 50,000"
    )


def _at_least_zero(distance: float) -> float:
    # In this order NaN stays NaN.
    return max(float(distance), 0.0)


def _check_eigenvalues(values: np.ndarray, what: str) -> None:
    """Raise for a matrix that is no covariance; warn where rounding was coarse."""
    if not np.isfinite(values).all():
        raise ValueError(f"the covariance of {what} has numbers that are not finite")
    least, largest = float(values.min()), float(max(values.max(), 0))
    if least < -_WRONG * largest or largest == 0 > least:
        raise ValueError(f"{what}: no covariance, its eigenvalues go from {least:.3g} to {largest:.3g}")
    if least < -_ROUNDING * largest:
        logger.warning("%s: the least eigenvalue is %.3g of %.3g; taken as 0", what, least, largest)


# Images in a split of the Inception score, and in a subset of the kernel distance, as released.
SPLIT = 5_000
SUBSET, SUBSETS = 1_000, 100


class InceptionScore:
    """Inception score (Salimans et al., arXiv 1606.03498): exp of the mean KL between p(y | x) and p(y).

    As released, it is the mean over splits of the images in file order, the last of which may be shorter. In
    a file that is sorted by class a split would have few classes and a score far too low, so its images are
    assigned to splits by a fixed permutation.

    Args:
        count: Number of images in all.
        labels: (count,) their classes in file order, if known.
        split: Images in a split.

    Attributes:
        order: "file", or "permuted" where the file is sorted by class.
    """

    def __init__(self, count: int, labels: np.ndarray | None = None, split: int = SPLIT) -> None:
        position = np.arange(count)
        self.order = "file"
        if labels is not None and count > split and labels[0] != labels[-1] and (np.diff(labels) >= 0).all():
            self.order = "permuted"
            position = np.random.default_rng(0).permutation(count)
        self._split_of = position // split
        self._splits = -(-count // split)
        self._counts = np.zeros(self._splits)
        self._negative_entropy = np.zeros(self._splits)
        self._sums: np.ndarray | None = None

    def update(self, logits: Tensor, indices: np.ndarray) -> None:
        """Take in logits (n, classes), without the classifier's bias as released, of images (n,)."""
        shares = logits.double().softmax(1).cpu()
        if self._sums is None:
            self._sums = np.zeros((self._splits, shares.shape[1]))
        splits = self._split_of[indices]
        np.add.at(self._counts, splits, 1)
        np.add.at(self._negative_entropy, splits, -torch.special.entr(shares).sum(1).numpy())
        np.add.at(self._sums, splits, shares.numpy())

    def merge(self, other: InceptionScore) -> None:
        """Take in the images of another process."""
        if other._sums is not None:
            self._counts += other._counts
            self._negative_entropy += other._negative_entropy
            self._sums = other._sums if self._sums is None else self._sums + other._sums

    def result(self) -> tuple[float, float]:
        """Return the mean over splits, and their deviation.

        Raises:
            ValueError: there were no images.
        """
        used = self._counts > 0
        if self._sums is None or not used.any():
            raise ValueError("the Inception score needs at least 1 image, got 0")
        counts = self._counts[used]
        mean = torch.from_numpy(self._sums[used] / counts[:, None])
        scores = np.exp(self._negative_entropy[used] / counts + torch.special.entr(mean).sum(1).numpy())
        return float(scores.mean()), float(scores.std())


def kernel_distance(
    drawn: Tensor, reference: Tensor, *, subset: int = SUBSET, subsets: int = SUBSETS, seed: int = 0
) -> tuple[float, float]:
    """Compute MMD^2 with the kernel (x . y / D + 1)^3 (Binkowski et al., arXiv 1801.01401).

    The estimate is unbiased, so sets of different sizes may be compared, and it may be negative. That of a
    set and itself is, since pairs within a set leave out those of a vector and itself.

    Args:
        drawn: (n, D) features.
        reference: (m, D) features, on the same device.
        subset: Images of each set in a subset, taken without replacement; all of a smaller set.
        subsets: Number of subsets; one where both sets are used whole.
        seed: Decides the subsets.

    Returns:
        The mean over subsets, and the deviation between them.

    Raises:
        ValueError: a set has fewer than two images.
    """
    size = min(subset, len(drawn), len(reference))
    if size < 2:
        raise ValueError(f"the kernel distance needs at least 2 images of each, got {size}")
    if size == len(drawn) == len(reference):
        subsets = 1
    rng = np.random.default_rng(seed)
    distances = []
    for _ in range(subsets):
        first, second = (
            each[torch.from_numpy(rng.choice(len(each), size, replace=False))].double()
            for each in (drawn, reference)
        )
        distances.append(_squared_discrepancy(first, second))
    return float(np.mean(distances)), float(np.std(distances))


def _squared_discrepancy(first: Tensor, second: Tensor) -> float:
    """Compute MMD^2 of two sets of n vectors (n, D), without the terms of a vector with itself."""
    count, dimension = first.shape

    def kernel(left: Tensor, right: Tensor) -> Tensor:
        return (left @ right.T / dimension + 1) ** 3

    own, other = kernel(first, first), kernel(second, second)
    pairs = count * (count - 1)
    within = (own.sum() - own.trace() + other.sum() - other.trace()) / pairs
    return (within - 2 * kernel(first, second).mean()).item()
