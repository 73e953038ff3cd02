"""What a comparison computes for several metrics, and what it cannot."""

import pytest

from mvar_models.evaluation import comparison as module
from mvar_models.evaluation.comparison import Comparison, Unavailable, leave_one_out
from mvar_models.evaluation.image_sets import ArrayImages
from mvar_models.evaluation.summary import summarize

from feature_cases import random_images, toy


def summary(seed=0, keep=True):
    return summarize(ArrayImages(random_images(30, seed=seed)), toy(), keep=keep)


def test_statistics_alone_give_no_neighbours():
    comparison = Comparison(summary(), summary(1, keep=False))
    assert module.fd(comparison)["fd"] > 0
    for name in ("precision", "kid", "near_copies"):
        with pytest.raises(Unavailable):
            getattr(module, name)(comparison)


def test_neighbours_are_computed_once():
    comparison = Comparison(summary(), summary(1))
    assert comparison.neighbourhoods is comparison.neighbourhoods


def test_the_reference_without_each_image_is_the_measure_of_copies():
    reference = summary()
    found = leave_one_out(reference, reference, "cpu")
    assert (found.distances == 0).all()
    assert (found.real > 0).all()
