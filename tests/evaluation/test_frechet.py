"""The Frechet distance against the closed form for Gaussians whose moments are known."""

import numpy as np
import pytest

from mvar_models.evaluation.frechet import frechet_distance


def vectors(mean, covariance, count=40):
    """Vectors whose sample mean and covariance are exactly those asked for."""
    rng = np.random.default_rng(0)
    white = rng.standard_normal((count, len(mean)))
    white -= white.mean(axis=0)
    white = white @ np.linalg.inv(np.linalg.cholesky(np.cov(white, rowvar=False))).T
    return white @ np.linalg.cholesky(np.array(covariance, dtype=float)).T + mean


def test_equal_sets_are_at_distance_zero():
    first = vectors([1, 2, 3], np.diag([1, 2, 3]))
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)


def test_shifted_means_add_their_squared_distance():
    covariance = [[2, 1], [1, 3]]
    assert frechet_distance(vectors([0, 0], covariance), vectors([3, 4], covariance)) == pytest.approx(25)


def test_commuting_covariances_add_squared_differences_of_deviations():
    first, second = vectors([0, 0], np.diag([1, 9])), vectors([0, 0], np.diag([4, 4]))
    assert frechet_distance(first, second) == pytest.approx((1 - 2) ** 2 + (3 - 2) ** 2)


def test_covariances_that_do_not_commute():
    """tr (S1 S2)^1/2 of two 2 x 2 matrices is sqrt(tr(S1 S2) + 2 sqrt(det(S1 S2)))."""
    first, second = np.array([[2.0, 1], [1, 3]]), np.array([[4.0, -1], [-1, 1]])
    product = first @ second
    cross = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    expected = np.trace(first) + np.trace(second) - 2 * cross
    assert frechet_distance(vectors([0, 0], first), vectors([0, 0], second)) == pytest.approx(expected)


def test_it_is_symmetric():
    first, second = vectors([0, 1], [[2, 1], [1, 3]]), vectors([2, 0], [[4, -1], [-1, 1]])
    assert frechet_distance(first, second) == pytest.approx(frechet_distance(second, first))


def test_scaled_features_scale_the_squared_distance():
    """Small variances count like large ones."""
    first, second = vectors([0, 1], [[2, 1], [1, 3]]), vectors([2, 0], [[4, -1], [-1, 1]])
    expected = 1e-4 * frechet_distance(first, second)
    assert frechet_distance(0.01 * first, 0.01 * second) == pytest.approx(expected, rel=1e-6)
