"""Running moments against NumPy's in float64, whatever the batches and the processes."""

import numpy as np
import pytest

from mvar_models.evaluation.moments import Moments


@pytest.mark.parametrize("cuts", [[], [1], [10, 11, 60]])
def test_batches_and_processes_give_the_same_moments(cuts):
    vectors = np.random.default_rng(0).normal(1e4, 1, (100, 5))
    parts = np.split(vectors, cuts)
    batched, merged = Moments(5), Moments(5)
    for part in parts:
        batched.update(part)
        merged.merge(Moments.of(part))
    for moments in (batched, merged):
        assert moments.count == 100
        np.testing.assert_allclose(moments.mean, vectors.mean(0), rtol=1e-14)
        # Sums of raw outer products would be wrong by 1e-8 here.
        np.testing.assert_allclose(moments.covariance, np.cov(vectors, rowvar=False), rtol=1e-10, atol=1e-12)


def test_empty_batches_change_nothing():
    moments = Moments.of(np.eye(3))
    moments.update(np.empty((0, 3)))
    moments.merge(Moments(3))
    assert moments.count == 3


def test_one_image_has_no_covariance():
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        _ = Moments.of(np.zeros((1, 3))).covariance


def test_ready_moments_are_taken_as_they_are():
    moments = Moments.ready(np.arange(2), np.eye(2), None)
    assert (moments.count, moments.dimension) == (None, 2)
    assert np.array_equal(moments.covariance, np.eye(2))
