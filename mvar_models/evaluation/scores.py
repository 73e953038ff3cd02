"""Inception score and kernel Inception distance, by their definitions."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

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
