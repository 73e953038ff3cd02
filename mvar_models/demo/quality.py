"""Generate digits in a process of their own, and judge them by three figures beside those of real digits.

Everything is measured on 8 x 8 grey images with values from 0 to 16, the form in which scikit-learn ships the
digits. Real and generated images are converted alike: to grey, then to the mean of each 4 x 4 block.
"""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from mvar_models.environment import peak_resident_bytes
from mvar_models.evaluation.nearest import copy_distance, nearest_distances
from mvar_models.evaluation.scores import frechet_distance
from mvar_models.optional import require
from mvar_models.pipeline import pipeline_for

_COMPONENTS = 20
_SEED = 1234


@dataclass(frozen=True)
class Generated:
    """Generated images and what they cost.

    Attributes:
        images: (n, R, R, 3) uint8.
        labels: (n,) their classes.
        seconds: Time for all of them.
        peak_bytes: How much generating them raised the peak memory of the process.
    """

    images: np.ndarray
    labels: np.ndarray
    seconds: float
    peak_bytes: int


def generate_in_process(model: str, per_class: int, batch_size: int) -> Generated:
    """Generate images of every class in a new process, whose time and peak memory nothing else shares.

    Args:
        model: Zoo name or folder.
        per_class: Images per class.
        batch_size: Images at a time, on which the memory of a KV cache depends.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_generate, model, per_class, batch_size).result()


def _generate(model: str, per_class: int, batch_size: int) -> Generated:
    pipeline = pipeline_for(model)
    labels = np.repeat(np.arange(pipeline.model.config.num_classes), per_class)
    # The first call initialises libraries, whose time and memory are not the model's.
    pipeline(labels[:1].tolist(), seed=0, output_type="np")
    before, begun = peak_resident_bytes() or 0, time.perf_counter()
    images = pipeline(
        labels.tolist(), seed=_SEED, output_type="np", batch_size=batch_size, batch_invariant=False
    ).images
    seconds = time.perf_counter() - begun
    return Generated(images, labels, seconds, (peak_resident_bytes() or 0) - before)


@dataclass(frozen=True)
class Quality:
    """Figures of one set of images.

    Attributes:
        agreement: Share of images that the classifier assigns to the requested class.
        frechet: Frechet distance to real digits, the training ones by default.
        near_copies: Share of images as close to a training digit as the closest 5 % of held-out digits are.
    """

    agreement: float
    frechet: float
    near_copies: float


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
        svm, decomposition = (require(f"sklearn.{name}", "demo") for name in ("svm", "decomposition"))
        self._classifier: Any = svm.SVC(gamma=0.001, C=10.0).fit(train, train_labels)
        # The full decomposition is deterministic; the randomised one, which "auto" may choose, is not.
        self._pca: Any = decomposition.PCA(_COMPONENTS, svd_solver="full").fit(train)
        self._train = train
        self.accuracy = float((self._classifier.predict(val) == val_labels).mean())
        self.copy_distance = copy_distance(nearest_distances(val, train))

    def judge(
        self, generated: np.ndarray, labels: np.ndarray, reference: np.ndarray | None = None
    ) -> Quality:
        """Return the figures of generated images.

        Args:
            generated: (n, 64) features.
            labels: (n,) the classes that were requested.
            reference: (m, 64) features of the digits that the distance is to; default: the training digits.
        """
        reference = self._train if reference is None else reference
        return Quality(
            agreement=float((self._classifier.predict(generated) == labels).mean()),
            frechet=frechet_distance(self._pca.transform(generated), self._pca.transform(reference)),
            near_copies=float((nearest_distances(generated, self._train) <= self.copy_distance).mean()),
        )
