"""How good are drawn digits? Three figures, each beside what real digits get.

Everything is measured on 8 x 8 grey pictures in 0 .. 16, the form in which scikit-learn ships the digits: real and drawn pictures take the
same way there (grey, mean over 4 x 4 pixels).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mvar_models.optional import require

_COMPONENTS = 20
# A drawn picture is a near-copy when it is closer to a training picture than all but this share of the held-out pictures are.
_COPY_QUANTILE = 0.05


@dataclass(frozen=True)
class Quality:
    """agreement: share of pictures that the classifier gives the asked class. frechet: Frechet distance to the real training digits.
    near_copies: share of pictures closer to a training digit than 95 % of the held-out digits are."""

    agreement: float
    frechet: float
    near_copies: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def features(images: np.ndarray) -> np.ndarray:
    """(n, R, R, 3) uint8 -> (n, 64) float64, R a multiple of 8."""
    count, side = images.shape[:2]
    grey = images.astype(np.float64).mean(axis=3) * (16 / 255)
    return grey.reshape(count, 8, side // 8, 8, side // 8).mean(axis=(2, 4)).reshape(count, 64)


class DigitJudge:
    """Classifier, feature space and copy threshold, all from real digits alone.

    Args:
        train, val: (n, 64) features of the training and held-out digits. train_labels, val_labels: their classes.
    """

    def __init__(
        self, train: np.ndarray, train_labels: np.ndarray, val: np.ndarray, val_labels: np.ndarray
    ) -> None:
        self.train = train
        self.classifier: Any = (
            require("sklearn.svm", "demo").SVC(gamma=0.001, C=10.0).fit(train, train_labels)
        )
        self.accuracy = float((self.classifier.predict(val) == val_labels).mean())
        self.mean = train.mean(axis=0)
        self.components = np.linalg.svd(train - self.mean, full_matrices=False)[2][:_COMPONENTS]
        self.copy_distance = float(np.quantile(self._nearest(val), _COPY_QUANTILE))

    def judge(self, drawn: np.ndarray, labels: np.ndarray) -> Quality:
        return Quality(
            agreement=float((self.classifier.predict(drawn) == labels).mean()),
            frechet=frechet_distance(self.project(drawn), self.project(self.train)),
            near_copies=float((self._nearest(drawn) < self.copy_distance).mean()),
        )

    def project(self, values: np.ndarray) -> np.ndarray:
        """Onto the first 20 principal components of the training digits."""
        return (values - self.mean) @ self.components.T

    def _nearest(self, values: np.ndarray) -> np.ndarray:
        """Distance of each picture to the nearest training digit."""
        squared = (values**2).sum(1)[:, None] - 2 * values @ self.train.T + (self.train**2).sum(1)[None]
        return np.sqrt(np.maximum(squared.min(axis=1), 0))


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Between Gaussians fitted to two sets of vectors (n, d): |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2)  (Heusel et al., 1706.08500)."""
    mean1, mean2 = first.mean(axis=0), second.mean(axis=0)
    cov1, cov2 = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    values, vectors = np.linalg.eigh(cov1)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    # S1 S2 and the symmetric S1^1/2 S2 S1^1/2 have the same eigenvalues.
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov2 @ root), 0)).sum()
    return float(((mean1 - mean2) ** 2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * cross)
