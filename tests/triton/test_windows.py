"""Exactly the keys of the window are attended to, whatever the shape and the factor of the logits."""

import random

import pytest
import torch

from mvar_kernels import Neighborhood
from mvar_kernels.backends import AttentionCall
from mvar_kernels.dispatch import load

from chosen_cases import EVERYTHING, some
from kernel_cases import (
    PYRAMID_DIGITS,
    assert_close,
    assert_windows_in_slices,
    draw_inputs,
    in_float64,
    random_grid_neighborhood,
)
from triton_support import DEVICE, NAMES, compare


@pytest.mark.parametrize("part", range(4))
def test_windows_exactly(part, seed):
    """With q = 0 and one-hot values the output is the window; one-hot dO shows it in dv."""
    rng = random.Random(seed + part)
    for index in range(50 if EVERYTHING else 12):
        assert_windows_in_slices(random_grid_neighborhood(rng, largest=12), "triton", DEVICE, f"{index}")


@pytest.mark.parametrize(
    "grid, window", some([((24, 24), (7, 7)), ((16, 18), (15, 9)), ((40, 9), (31, 3))], 2)
)
def test_windows_exactly_where_tiles_are_interior_or_windows_large(grid, window):
    assert_windows_in_slices(Neighborhood.of_grids(grid, grid, window), "triton", DEVICE, f"{grid} {window}")


@pytest.mark.parametrize("grid, window", some([((40, 40), (31, 31)), ((20, 40), (13, 25))], 1))
def test_large_windows(grid, window):
    compare(Neighborhood.of_grids(grid, grid, window), batch=1, heads=1, dim=8, use_lse=False)


@pytest.mark.parametrize("scale", some([0.0, -0.5, 1e-20, 30.0], 2))
def test_no_scale_weakens_the_mask(scale):
    compare(PYRAMID_DIGITS.neighborhood(), batch=1, heads=1, scale=scale)


@pytest.mark.parametrize(
    "factor, scale",
    some([(0.0, 1.0), (-3.0, 1.0), (100.0, 1.0), (-3.0, 0.0), (3.0, -0.0), (-3.0, -2.0), (-1e-30, 1e-30)], 3),
)
def test_no_factor_weakens_the_mask(factor, scale):
    neighborhood = PYRAMID_DIGITS.neighborhood()
    inputs = list(draw_inputs(neighborhood, batch=1, cosine=True, device=DEVICE))
    inputs[3] = torch.full_like(inputs[3], factor)
    query, key, value, logit_scale, grad_out, _ = inputs
    backend = load("triton")
    call = AttentionCall(query, key, value, logit_scale, neighborhood, scale)
    out, lse = backend.forward(call)
    grads = backend.backward(call, out, lse, grad_out, None)
    expected_out, _, expected = in_float64(inputs, neighborhood, scale, use_lse=False)
    assert_close(out, expected_out, 1e-4, "out")
    for name, actual, truth in zip(NAMES, grads, expected):
        assert_close(actual, truth, 1e-4 * max(1.0, truth.abs().max().item()), name)
