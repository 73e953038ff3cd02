"""Frechet distance, Inception score and kernel distance against closed forms and loops."""

import numpy as np
import pytest
import torch

from mvar_models.evaluation.scores import (
    FrechetReference,
    InceptionScore,
    Moments,
    frechet_distance,
    kernel_distance,
    rank_warning,
)


def inception_score(logits, labels=None, split=5_000):
    score = InceptionScore(len(logits), labels, split)
    score.update(logits, np.arange(len(logits)))
    return score.result()


def test_certain_and_even_classes_give_their_number():
    logits = 100 * torch.eye(10).repeat(5, 1)
    assert inception_score(logits)[0] == pytest.approx(10)


def test_no_knowledge_gives_one():
    assert inception_score(torch.zeros(20, 7)) == pytest.approx((1, 0))


def test_against_the_definition():
    logits = torch.randn(30, 6, dtype=torch.float64)
    expected = []
    for part in logits.split(12):
        shares = part.softmax(1)
        expected.append((shares * (shares / shares.mean(0)).log()).sum(1).mean().exp().item())
    assert inception_score(logits, split=12) == pytest.approx((np.mean(expected), np.std(expected)))


def test_a_sorted_file_is_permuted_and_says_so():
    labels = np.repeat(np.arange(10), 10)
    logits = 100 * torch.eye(10)[labels]
    score = InceptionScore(100, labels, split=20)
    score.update(logits, np.arange(100))
    assert score.order == "permuted"
    assert score.result()[0] > 5, "in file order every split has two classes"
    assert inception_score(logits, split=20)[0] == pytest.approx(2)
    assert InceptionScore(100, labels[::-1].copy(), split=20).order == "file"


def test_processes_merge():
    logits = torch.randn(40, 5)
    first, second = InceptionScore(40, split=15), InceptionScore(40, split=15)
    first.update(logits[::2], np.arange(0, 40, 2))
    second.update(logits[1::2], np.arange(1, 40, 2))
    first.merge(second)
    assert first.result() == pytest.approx(inception_score(logits, split=15), rel=1e-12)


def test_against_a_loop():
    torch.manual_seed(0)
    first, second = torch.randn(6, 3).double(), torch.randn(6, 3).double()

    def kernel(x, y):
        return (x @ y / 3 + 1).item() ** 3

    own = sum(kernel(s[i], s[j]) for s in (first, second) for i in range(6) for j in range(6) if i != j)
    cross = sum(kernel(x, y) for x in first for y in second)
    assert kernel_distance(first, second) == pytest.approx((own / 30 - 2 * cross / 36, 0))


def test_equal_distributions_are_around_zero():
    torch.manual_seed(0)
    mean, deviation = kernel_distance(torch.randn(400, 4), torch.randn(400, 4), subset=100, subsets=50)
    assert abs(mean) < deviation
    assert np.sign(kernel_distance(torch.randn(400, 4) + 1, torch.randn(400, 4), subset=100)[0]) == 1


def test_one_image_is_too_few():
    with pytest.raises(ValueError, match="at least 2 images of each, got 1"):
        kernel_distance(torch.zeros(1, 3), torch.zeros(5, 3))


def frechet_between(first, second):
    return FrechetReference(second).distance(first)


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


def test_few_vectors_and_many_agree():
    """With fewer vectors than numbers the distance is computed without the covariances."""
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((6, 9)), rng.standard_normal((7, 9)) + 1
    by_moments = frechet_between(Moments.of(first), Moments.of(second))
    assert frechet_distance(first, second) == pytest.approx(by_moments, rel=1e-6)


def test_a_matrix_with_negative_eigenvalues_is_refused():
    wrong = Moments.ready(np.zeros(2), np.diag([1.0, -0.5]), 10)
    with pytest.raises(ValueError, match=r"no covariance, its eigenvalues go from -0\.5 to 1"):
        frechet_between(wrong, wrong)


def test_another_dimension_is_refused():
    with pytest.raises(ValueError, match=r"reference have 2 numbers.*drawn images have 3"):
        frechet_between(Moments.of(np.eye(3)), Moments.of(np.eye(2)))


def test_too_few_images_are_warned_of_with_the_number_that_would_do():
    assert "4 images for full rank" in rank_warning(Moments.of(np.eye(3)), "drawn")
    assert "201 images for full rank" in rank_warning(Moments.ready(np.zeros(200), np.eye(200), 50), "drawn")
    assert rank_warning(Moments.ready(np.zeros(200), np.eye(200), 201), "drawn") is None


@pytest.mark.parametrize("count, dimension", [(5, 3), (40, 7), (4, 30), (60, 64), (300, 12)])
@pytest.mark.parametrize("scale", [1, 1e4])
def test_no_distance_of_a_set_to_itself_is_negative(count, dimension, scale):
    for seed in range(10):
        values = np.random.default_rng(seed).normal(scale=scale, size=(count, dimension)) + scale
        moments = Moments.of(values)
        for found in (frechet_distance(values, values), frechet_between(moments, moments)):
            assert 0 <= found < 1e-4 * scale**2


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
