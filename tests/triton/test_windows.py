"""Exactly the keys of the windows are attended to, in a scale and in those before it."""

import random

import pytest
import torch

from mvar_kernels import Neighborhood, Pyramid, neighborhood_attn, pyramid_markov_attn
from mvar_kernels.backends import AttentionCall
from mvar_kernels.dispatch import load

from chosen_cases import EVERYTHING, once, some
from kernel_cases import (
    PYRAMID_DIGITS,
    assert_close,
    assert_windows_in_slices,
    draw_inputs,
    errors_beside_plain_pytorch,
    in_float64,
    random_grid_neighborhood,
    random_pyramid,
)
from triton_support import DEVICE, HALF, NAMES, compare

ADJACENT = Pyramid((1, 2, 3, 4, 6, 8), 3, 3, 1)


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


@pytest.mark.parametrize("part", range(4))
def test_windows_in_scales_before_exactly(part, seed):
    """Random pyramids; with q = 0 and one-hot values the output is the window."""
    rng = random.Random(seed + part)
    for index in range(50 if EVERYTHING else 12):
        pyramid = random_pyramid(rng, largest=5)
        while pyramid.length > 64:
            pyramid = random_pyramid(rng, largest=5)
        assert_windows_in_slices(pyramid.neighborhood(), "triton", DEVICE, f"{index} {pyramid}")


@pytest.mark.parametrize("previous_scales, cosine", once([1, 2, 5], [False, True]))
def test_against_float64(previous_scales, cosine):
    pyramid = Pyramid(PYRAMID_DIGITS.sides, 3, 3, previous_scales)
    compare(pyramid.neighborhood(), batch=1, cosine=cosine, dim=16)


def test_tiles_of_several_chunks():
    """Grids larger than a tile, whose keys in both scales take more than one chunk."""
    compare(Pyramid((13, 16), 7, 0, 1).neighborhood(), batch=1, heads=1, dim=16)


def test_one_scale_at_a_time_is_all_at_once():
    query, key, value, *_ = draw_inputs(ADJACENT.neighborhood(), batch=1, dim=16, device=DEVICE)
    whole = pyramid_markov_attn(query, key, value, ADJACENT, backend="triton")
    for scale in range(ADJACENT.num_scales):
        own = ADJACENT.scale_slice(scale)
        seen = slice(ADJACENT.offsets[ADJACENT.first_seen(scale)], own.stop)
        step = neighborhood_attn(
            query[:, own], key[:, seen], value[:, seen], ADJACENT.step_neighborhood(scale), backend="triton"
        )
        assert (step - whole[:, own]).abs().max() <= 2e-5, scale


def test_all_whole_scales_are_var_s_neighborhood():
    """One block of keys per scale of queries, so that VAR's tiles have as many chunks as before."""
    neighborhood = Pyramid(PYRAMID_DIGITS.sides, 1, 6, 5).neighborhood()
    assert neighborhood == PYRAMID_DIGITS.causal_neighborhood()
    assert len(neighborhood.blocks) == PYRAMID_DIGITS.num_scales


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("factor", some([None, 10.0], 1))
def test_errors_are_at_most_twice_those_of_plain_pytorch(dtype, factor):
    found = errors_beside_plain_pytorch("triton", ADJACENT.neighborhood(), dtype, factor, batch=1, heads=1)
    for name, error, plain, largest in found:
        size = largest if name != "dlogit_scale" else 2 * ADJACENT.length**0.5
        assert error <= 2 * plain + 2 * torch.finfo(dtype).eps * size, name
