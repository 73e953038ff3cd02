"""Nearest training images: has the model learned, or copied?"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mvar_models.evaluation.distances import blocks, centred, radii, upper

# A near-copy is as close to a training image as the closest 5 % of real images are.
COPY_QUANTILE = 0.05


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
            found = numbers.where(equal, torch.iinfo(numbers.dtype).max).min(1).values
            self._take(slice(start, start + len(least)), least, found)

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
        """What `merge` takes, on the CPU."""
        return self._squared.cpu(), self.indices.cpu()

    @property
    def distances(self) -> np.ndarray:
        """(n,) float64, the distance to the nearest."""
        found: np.ndarray = self._squared.double().sqrt().cpu().numpy()
        return found


def nearest_distances(vectors: np.ndarray | Tensor, others: np.ndarray | Tensor) -> np.ndarray:
    """Return (n,) distances of (n, D) vectors to the nearest of (m, D) others."""
    found, known = (
        torch.from_numpy(each) if isinstance(each, np.ndarray) else each for each in (vectors, others)
    )
    nearest = Nearest(found.float())
    nearest.update(known.float(), torch.arange(len(known), device=known.device))
    return nearest.distances


def copy_distance(distances: np.ndarray) -> float:
    """Return the distance up to which an image is a near-copy: 5 % of real images are that close.

    Args:
        distances: (n,) distances of real images that are not for training to the nearest training image.
    """
    return float(np.quantile(distances, COPY_QUANTILE))


def apart(training: Tensor) -> np.ndarray:
    """Return (n,) distances of training images (n, D) to the nearest other one."""
    (squared,) = radii(centred(training, training)[0], (1,))
    found: np.ndarray = squared.double().sqrt().cpu().numpy()
    return found
