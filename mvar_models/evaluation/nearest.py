"""Nearest training images: has the model learned, or copied?"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mvar_models.evaluation.distances import blocks, radii

# A near-copy is as close to a training image as the closest 5 % of real images are.
COPY_QUANTILE = 0.05


class Nearest:
    """The nearest of many vectors to each of some, which may come a batch at a time.

    Args:
        vectors: (n, D) float32.

    Attributes:
        indices: (n,) int64, the nearest so far; -1 before any has come.
    """

    def __init__(self, vectors: Tensor) -> None:
        # Distances are small differences of large norms: moving the origin close makes rounding smaller.
        self._origin = vectors.double().mean(0).to(vectors)
        self._vectors = vectors - self._origin
        self._squared = torch.full((len(vectors),), torch.inf, device=vectors.device)
        self.indices = torch.full((len(vectors),), -1, device=vectors.device)

    def update(self, others: Tensor, indices: np.ndarray | Tensor) -> None:
        """Take in (m, D) other vectors and their (m,) numbers."""
        if not len(others):
            return
        # A copy: an array may be a read-only view of a file.
        copied = indices.copy() if isinstance(indices, np.ndarray) else indices
        numbers = torch.as_tensor(copied, device=self.indices.device)
        others = others.to(self._vectors) - self._origin
        for start, distances in blocks(self._vectors, others):
            least, place = distances.min(1)
            rows = slice(start, start + len(least))
            # Of equally near ones the lowest number counts, whatever the order they came in.
            found = numbers[place]
            closer = (least < self._squared[rows]) | (
                (least == self._squared[rows]) & (found < self.indices[rows])
            )
            self._squared[rows] = torch.where(closer, least, self._squared[rows])
            self.indices[rows] = torch.where(closer, found, self.indices[rows])

    def merge(self, others: list[tuple[Tensor, Tensor]]) -> None:
        """Take in the `state` of other processes."""
        for squared, indices in others:
            squared, indices = squared.to(self._squared), indices.to(self.indices)
            closer = (squared < self._squared) | ((squared == self._squared) & (indices < self.indices))
            self._squared = torch.where(closer, squared, self._squared)
            self.indices = torch.where(closer, indices, self.indices)

    @property
    def state(self) -> tuple[Tensor, Tensor]:
        """What `merge` takes, on the CPU."""
        return self._squared.cpu(), self.indices.cpu()

    @property
    def distances(self) -> np.ndarray:
        """(n,) float64, the distance to the nearest."""
        found: np.ndarray = self._squared.double().sqrt().cpu().numpy()
        return found


def nearest_distances(vectors: np.ndarray | Tensor, others: np.ndarray | Tensor) -> np.ndarray:
    """Return (n,) distances of (n, D) vectors to the nearest of (m, D) others."""
    nearest = Nearest(torch.as_tensor(vectors).float())
    nearest.update(torch.as_tensor(others).float(), torch.arange(len(others)))
    return nearest.distances


def copy_distance(distances: np.ndarray) -> float:
    """Return the distance up to which an image is a near-copy: 5 % of real images are that close.

    Args:
        distances: (n,) distances of real images that are not for training to the nearest training image.
    """
    return float(np.quantile(distances, COPY_QUANTILE))


def apart(training: Tensor) -> np.ndarray:
    """Return (n,) distances of training images (n, D) to the nearest other one."""
    (squared,) = radii(training - training.double().mean(0).to(training), (1,))
    found: np.ndarray = squared.double().sqrt().cpu().numpy()
    return found
