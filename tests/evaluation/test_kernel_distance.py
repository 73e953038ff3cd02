"""The kernel distance against a loop, and unbiased around zero."""

import numpy as np
import pytest
import torch

from mvar_models.evaluation.kernel_distance import kernel_distance


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
