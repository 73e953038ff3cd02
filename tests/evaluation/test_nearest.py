"""The nearest training images, batch by batch, against all distances at once."""

import numpy as np
import pytest
import torch

from mvar_models.evaluation.nearest import Nearest, apart, copy_distance, nearest_distances


def test_batches_in_any_order_find_the_nearest():
    torch.manual_seed(0)
    vectors, others = torch.randn(20, 5) + 9, torch.randn(60, 5) + 9
    expected = torch.cdist(vectors.double(), others.double())
    nearest, second = Nearest(vectors), Nearest(vectors)
    for start in (40, 0):
        nearest.update(others[start : start + 20], np.arange(start, start + 20))
    second.update(others[20:40], np.arange(20, 40))
    nearest.merge([second.state])
    assert torch.equal(nearest.indices, expected.argmin(1))
    np.testing.assert_allclose(nearest.distances, expected.min(1).values, rtol=1e-4)
    np.testing.assert_allclose(nearest_distances(vectors, others), nearest.distances, rtol=1e-4)


def test_copies_are_at_distance_zero():
    vectors = torch.randn(10, 5) + 100
    assert (nearest_distances(vectors[:3], vectors) == 0).all()


def test_of_equally_near_ones_the_first_counts():
    nearest = Nearest(torch.zeros(2, 3))
    nearest.update(torch.ones(1, 3), [7])
    nearest.update(torch.ones(1, 3), [4])
    assert nearest.indices.tolist() == [4, 4]


@pytest.mark.parametrize("batch", [1, 9, 40])
def test_the_first_of_equally_near_ones_on_whole_numbers(batch):
    torch.manual_seed(0)
    vectors, others = torch.randint(4, (30, 3)).float(), torch.randint(4, (40, 3)).float()
    nearest = Nearest(vectors)
    for start in reversed(range(0, 40, batch)):
        nearest.update(others[start : start + batch], np.arange(start, min(start + batch, 40)))
    apart_ = (vectors.double()[:, None] - others.double()).square().sum(-1)
    first = [row.tolist().index(row.min().item()) for row in apart_]
    assert nearest.indices.tolist() == first
    assert np.array_equal(nearest.distances, apart_.min(1).values.sqrt().numpy())


def test_training_images_are_compared_with_the_others():
    line = torch.tensor([[0.0], [1], [3], [7]])
    assert apart(line).tolist() == [1, 1, 2, 4]


def test_five_percent_of_real_images_are_near_copies():
    distances = np.arange(1.0, 101)
    assert (distances <= copy_distance(distances)).mean() == pytest.approx(0.05)
