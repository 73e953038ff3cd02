"""Distances a block at a time, against float64."""

import pytest
import torch

from mvar_models.evaluation import distances as module
from mvar_models.evaluation.distances import blocks, centred, radii, squared_distances


def sets(count=30, dimension=8):
    torch.manual_seed(0)
    return torch.randn(count, dimension) + 3, torch.randn(count + 5, dimension) + 3


def brute(first, second):
    return (first.double()[:, None] - second.double()).square().sum(-1)


def test_against_brute_force_in_float64(monkeypatch):
    monkeypatch.setattr(module, "_NUMBERS", 100)
    first, second = sets()
    found = torch.cat([part for _, part in blocks(*centred(first, second))])
    torch.testing.assert_close(found.double(), brute(first, second), rtol=1e-5, atol=1e-5)


def test_a_copy_is_at_distance_zero():
    first, _ = sets()
    assert squared_distances(first, first).diagonal().eq(0).all()


def test_half_precision_resolves_no_finer_than_float16():
    first, second = sets(dimension=64)
    found = squared_distances(first * 2, second * 2, half=True)
    assert torch.equal(found, found.half().float())
    torch.testing.assert_close(found.double(), brute(first * 2, second * 2), rtol=0.05, atol=5)


def test_overflow_in_half_falls_back_to_float32():
    first, second = sets()
    found = squared_distances(first * 1000, second * 1000, half=True)
    torch.testing.assert_close(found, squared_distances(first * 1000, second * 1000))


def test_radii_leave_out_the_image_itself(monkeypatch):
    monkeypatch.setattr(module, "_NUMBERS", 100)
    first, _ = sets()
    expected = brute(first, first).sort(1).values
    for k, found in zip((1, 3), radii(first, (1, 3))):
        torch.testing.assert_close(found.double(), expected[:, k], rtol=1e-4, atol=1e-4)


def test_too_few_images_have_no_radius():
    with pytest.raises(ValueError, match="5 nearest neighbours need more than 5 images, got 5"):
        radii(torch.randn(5, 3), (3, 5))
