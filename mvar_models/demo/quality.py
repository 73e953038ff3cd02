"""How good generated digits are: three figures, to be compared with those of real digits.

Everything is measured on 8 x 8 grey images with values from 0 to 16, the form in which scikit-learn ships the
digits. Real and generated images are converted alike: to grey, then to the mean of each 4 x 4 block.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mvar_models.evaluation.frechet import frechet_distance
from mvar_models.evaluation.nearest import copy_distance, nearest_distances
from mvar_models.optional import require

_COMPONENTS = 20


@dataclass(frozen=True)
class Quality:
    """Figures of one set of images.

    Attributes:
        agreement: Share of images that the classifier assigns to the requested class.
        frechet: Frechet distance to the real training digits.
        near_copies: Share of images as close to a training digit as the closest 5 % of held-out digits are.
    """

    agreement: float
    frechet: float
    near_copies: float

    def to_dict(self) -> dict[str, float]:
        """Return the figures by name."""
        return asdict(self)


def features(images: np.ndarray) -> np.ndarray:
    """Convert images (n, R, R, 3) of uint8 to (n, 64) float64; R is a multiple of 8."""
    count, side = images.shape[:2]
    grey = images.astype(np.float64).mean(axis=3) * (16 / 255)
    return grey.reshape(count, 8, side // 8, 8, side // 8).mean(axis=(2, 4)).reshape(count, 64)


class DigitJudge:
    """Classifier, feature space and copy threshold, all fitted to real digits alone.

    Args:
        train: (n, 64) features of the training digits.
        train_labels: (n,) their classes.
        val: (m, 64) features of the held-out digits.
        val_labels: (m,) their classes.

    Attributes:
        accuracy: Share of the held-out digits that the classifier gets right.
        copy_distance: Distance to the nearest training digit up to which an image is a near-copy.
    """

    def __init__(
        self, train: np.ndarray, train_labels: np.ndarray, val: np.ndarray, val_labels: np.ndarray
    ) -> None:
        self._classifier: Any = (
            require("sklearn.svm", "demo").SVC(gamma=0.001, C=10.0).fit(train, train_labels)
        )
        # The full decomposition is deterministic; the randomised one, which "auto" may choose, is not.
        pca = require("sklearn.decomposition", "demo").PCA(_COMPONENTS, svd_solver="full")
        self._pca: Any = pca.fit(train)
        self._train = train
        self._projected = self.project(train)
        self.accuracy = float((self._classifier.predict(val) == val_labels).mean())
        self.copy_distance = copy_distance(self._nearest(val))

    def judge(self, generated: np.ndarray, labels: np.ndarray) -> Quality:
        """Return the figures of generated images.

        Args:
            generated: (n, 64) features.
            labels: (n,) the classes that were requested.
        """
        return Quality(
            agreement=float((self._classifier.predict(generated) == labels).mean()),
            frechet=frechet_distance(self.project(generated), self._projected),
            near_copies=float((self._nearest(generated) <= self.copy_distance).mean()),
        )

    def project(self, values: np.ndarray) -> np.ndarray:
        """Project (n, 64) features onto the first 20 principal components of the training digits."""
        projected: np.ndarray = self._pca.transform(values)
        return projected

    def _nearest(self, values: np.ndarray) -> np.ndarray:
        """Return (n,) distances to the nearest training digit."""
        return nearest_distances(values, self._train)
