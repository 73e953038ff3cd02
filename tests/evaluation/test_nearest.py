"""Nearest images, neighbourhoods and distances a block at a time, against loops in float64."""

import numpy as np
import pytest
import torch

from mvar_models.evaluation import nearest as module
from mvar_models.evaluation.nearest import (
    Nearest,
    blocks,
    centred,
    copy_distance,
    nearest_distances,
    nearest_other_distances,
    neighbourhoods,
    radii,
    squared_distances,
)


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
    assert nearest_other_distances(line).tolist() == [1, 1, 2, 4]


def test_five_percent_of_real_images_are_near_copies():
    distances = np.arange(1.0, 101)
    assert (distances <= copy_distance(distances)).mean() == pytest.approx(0.05)


def squared(first, second):
    return (first.double()[:, None] - second.double()).square().sum(-1)


def brute(drawn, reference):
    """The four figures by their definitions, image by image; exact where the vectors are whole numbers."""

    def radius(vectors, k):
        return squared(vectors, vectors).sort().values[:, k].tolist()

    near, wide, own = radius(reference, 3), radius(reference, 5), radius(drawn, 3)
    apart = squared(drawn, reference)
    n, m = apart.shape
    precision = sum(any(apart[i, j] <= near[j] for j in range(m)) for i in range(n)) / n
    recall = sum(any(apart[i, j] <= own[i] for i in range(n)) for j in range(m)) / m
    density = sum(sum(apart[i, j].item() <= wide[j] for j in range(m)) for i in range(n)) / (5 * n)
    coverage = sum(apart[:, j].min() <= wide[j] for j in range(m)).item() / m
    return precision, recall, density, coverage


def figures(found):
    return found.precision, found.recall, found.density, found.coverage


@pytest.mark.parametrize("shift", [0, 0.7, 2])
def test_against_brute_force(shift):
    torch.manual_seed(1)
    drawn, reference = torch.randn(40, 4) + shift, torch.randn(30, 4)
    assert figures(neighbourhoods(drawn, reference)) == pytest.approx(brute(drawn, reference))


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
@pytest.mark.parametrize("offset", [0, 1000])
def test_ties_on_whole_numbers_against_brute_force(monkeypatch, block, offset):
    """Of points on a small grid most are equally far from several others."""
    monkeypatch.setattr(module, "_NUMBERS", block)
    for seed in range(30):
        torch.manual_seed(seed)
        size, dimension = 3 + seed % 4, 2 + seed % 3
        drawn, reference = (
            torch.randint(size, (count, dimension)).float() + offset for count in (25 + seed, 30)
        )
        found = figures(neighbourhoods(drawn, reference))
        assert found == pytest.approx(brute(drawn, reference), abs=1e-12), seed


@pytest.mark.parametrize("block", [1, 50, 1 << 20])
def test_ties_of_copies_against_brute_force(monkeypatch, block):
    """A copy of the k-th neighbour lies at just the radius, however the sum of its distance was rounded."""
    monkeypatch.setattr(module, "_NUMBERS", block)
    torch.manual_seed(3)
    reference = torch.randn(60, 33) / 7 + 5
    order = torch.randperm(60)
    apart = squared(reference, reference)
    expected = (apart <= apart.sort(1).values[:, 5:6]).sum().item() / (5 * 60)
    assert neighbourhoods(reference[order], reference).density == pytest.approx(expected, abs=1e-12)


def test_identical_sets():
    vectors = torch.randn(50, 6)
    found = neighbourhoods(vectors, vectors.clone())
    assert figures(found)[:2] == (1, 1)
    assert found.coverage == 1


@pytest.mark.parametrize("half", [False, True])
def test_far_copies_share_nothing(half):
    vectors = torch.randn(50, 6)
    assert figures(neighbourhoods(vectors + 50, vectors, half=half)) == (0, 0, 0, 0)


def test_a_dropped_mode_costs_recall_alone():
    torch.manual_seed(2)
    modes = torch.tensor([[0.0, 0], [100, 0]])
    reference = torch.cat([torch.randn(60, 2) + mode for mode in modes])
    found = neighbourhoods(reference[:60] + 0.01 * torch.randn(60, 2), reference)
    assert found.precision > 0.95
    assert found.recall == pytest.approx(0.5, abs=0.05)
    assert found.coverage == pytest.approx(0.5, abs=0.05)


def sets(count=30, dimension=8):
    torch.manual_seed(0)
    return torch.randn(count, dimension) + 3, torch.randn(count + 5, dimension) + 3


def all_pairs(first, second):
    return (first.double()[:, None] - second.double()).square().sum(-1)


def test_against_brute_force_in_float64(monkeypatch):
    monkeypatch.setattr(module, "_NUMBERS", 100)
    first, second = sets()
    found = torch.cat([part for _, part in blocks(*centred(first, second))])
    torch.testing.assert_close(found.double(), all_pairs(first, second), rtol=1e-5, atol=1e-5)


def test_a_copy_is_at_distance_zero():
    first, _ = sets()
    assert squared_distances(first, first).diagonal().eq(0).all()


def test_half_precision_resolves_no_finer_than_float16():
    first, second = sets(dimension=64)
    found = squared_distances(first * 2, second * 2, half=True)
    assert torch.equal(found, found.half().float())
    torch.testing.assert_close(found.double(), all_pairs(first * 2, second * 2), rtol=0.05, atol=5)


def test_overflow_in_half_falls_back_to_float32():
    first, second = sets()
    found = squared_distances(first * 1000, second * 1000, half=True)
    torch.testing.assert_close(found, squared_distances(first * 1000, second * 1000))


def test_radii_leave_out_the_image_itself(monkeypatch):
    monkeypatch.setattr(module, "_NUMBERS", 100)
    first, _ = sets()
    expected = all_pairs(first, first).sort(1).values
    for k, found in zip((1, 3), radii(first, (1, 3))):
        torch.testing.assert_close(found.double(), expected[:, k], rtol=1e-4, atol=1e-4)


def test_too_few_images_have_no_radius():
    with pytest.raises(ValueError, match="5 nearest neighbours need more than 5 images, got 5"):
        radii(torch.randn(5, 3), (3, 5))
