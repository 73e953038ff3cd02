"""Inception score (Salimans et al., arXiv 1606.03498): exp of the mean KL between p(y | x) and p(y).

As released, over splits of 5,000 images in file order, the last of which may be shorter. A file that is
sorted by class would have few classes in each split and a score far too low, so its images are assigned to
splits by a fixed permutation.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SPLIT = 5_000


class InceptionScore:
    """Running sums from which the score follows, for a known number of images.

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
        """Take in (n, classes) logits of the images with these indices."""
        shares = logits.double().softmax(1).cpu()
        if self._sums is None:
            self._sums = np.zeros((self._splits, shares.shape[1]))
        splits = self._split_of[indices]
        np.add.at(self._counts, splits, 1)
        np.add.at(self._negative_entropy, splits, -torch.special.entr(shares).sum(1).numpy())
        np.add.at(self._sums, splits, shares.numpy())

    def merge(self, other: InceptionScore) -> None:
        """Take in what another process has seen."""
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


def inception_score(
    logits: Tensor, labels: np.ndarray | None = None, split: int = SPLIT
) -> tuple[float, float]:
    """Return the Inception score and its deviation over splits.

    Args:
        logits: (n, classes), without the classifier's bias as released.
        labels: (n,) classes of the images in file order, if known.
        split: Images in a split.
    """
    score = InceptionScore(len(logits), labels, split)
    score.update(logits, np.arange(len(logits)))
    return score.result()
