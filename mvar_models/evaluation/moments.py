"""Mean and covariance of feature vectors, in bounded memory and mergeable over processes.

Batches are merged by their means and scatter matrices in float64 (Chan, Golub, LeVeque 1983). Sums of raw
outer products would lose the digits that covariance shares with the squared mean: with a mean of 1e4 and a
deviation of 1, eight of sixteen.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor


class Moments:
    """Running mean and scatter matrix of vectors of one length.

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
        """Return the moments of (n, D) vectors."""
        moments = cls(vectors.shape[1])
        moments.update(vectors)
        return moments

    @classmethod
    def ready(cls, mean: np.ndarray, covariance: np.ndarray, count: int | None) -> Moments:
        """Return moments that were computed elsewhere.

        Args:
            mean: (D,).
            covariance: (D, D), divided by n - 1.
            count: Number n of vectors, if known.
        """
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
        """Take in what another process has seen."""
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
