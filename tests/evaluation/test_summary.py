"""One pass over a set, alone and shared."""

import numpy as np
import pytest

from mvar_models.evaluation.image_sets import ArrayImages
from mvar_models.evaluation.summary import summarize
from mvar_models.evaluation.workers import Alone

from feature_cases import random_images, toy


class Second(Alone):
    """The second of two processes, whose part is handed on."""

    rank, world_size = 1, 2

    def gather(self, value):
        self.sent = value
        return []


class First(Alone):
    world_size = 2

    def __init__(self, other):
        self.other = other

    def gather(self, value):
        return [value, self.other.sent]


def test_two_processes_find_what_one_finds():
    images = ArrayImages(random_images(50), np.arange(50))
    second = Second()
    assert summarize(images, toy(), batch_size=8, workers=second) is None
    shared = summarize(images, toy(), batch_size=8, workers=First(second))
    alone = summarize(images, toy(), batch_size=8)
    np.testing.assert_allclose(shared.moments.covariance, alone.moments.covariance, rtol=1e-9, atol=1e-9)
    assert shared.score.result() == pytest.approx(alone.score.result(), rel=1e-9)
    assert np.array_equal(shared.features, alone.features)
    assert shared.labels.tolist() == list(range(50))


def test_features_are_kept_on_request():
    images = ArrayImages(random_images(5))
    assert summarize(images, toy(), keep=False).features is None


def test_progress_is_reported():
    told = []
    summarize(ArrayImages(random_images(5)), toy(), batch_size=2, report=lambda *seen: told.append(seen))
    assert told == [(2, 5), (4, 5), (5, 5)]
