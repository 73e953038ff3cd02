"""Adjacent scales in one softmax, in every backend that runs on a CPU; tests/triton has the kernels'."""

import random

import pytest
import torch

from mvar_kernels import Pyramid, neighborhood_attn, pyramid_markov_attn

from kernel_cases import CPU_BACKENDS, assert_windows_in_slices, draw_inputs, random_pyramid

ADJACENT = Pyramid((1, 2, 3, 4, 6, 9), 3, 3, 2)


def small_pyramid(rng):
    """Draw a pyramid of at most 64 tokens that sees a previous scale."""
    while True:
        pyramid = random_pyramid(rng, largest=6)
        if pyramid.length <= 64 and pyramid.previous_scales:
            return pyramid


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_windows_of_200_pyramids(backend, seed):
    """Exactly what the mask says, which test_pyramid.py holds to a loop over all pairs of tokens."""
    rng = random.Random(seed)
    for index in range(200):
        pyramid = small_pyramid(rng)
        assert_windows_in_slices(pyramid.neighborhood(), backend, "cpu", f"{index} {pyramid}")


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_one_scale_at_a_time_is_all_at_once(backend):
    query, key, value, *_ = draw_inputs(ADJACENT.neighborhood(), dim=16)
    whole, lse = pyramid_markov_attn(query, key, value, ADJACENT, backend=backend, return_lse=True)
    for scale in range(ADJACENT.num_scales):
        own = ADJACENT.scale_slice(scale)
        seen = slice(ADJACENT.offsets[ADJACENT.first_seen(scale)], own.stop)
        step = neighborhood_attn(
            query[:, own], key[:, seen], value[:, seen], ADJACENT.step_neighborhood(scale), backend=backend
        )
        assert (step - whole[:, own]).abs().max() <= 1e-6
    assert lse.isfinite().all()


@pytest.mark.parametrize("threads", [1, 2])
def test_gradients_have_the_same_bits_on_every_run(threads):
    """Two scales add to the same keys, one after the other."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        pyramid = Pyramid((13, 16, 24, 32), 7, 0, 1)
        query, key, value, _, grad_out, _ = draw_inputs(pyramid.neighborhood(), heads=8, dim=64)
        leaves = [tensor.requires_grad_() for tensor in (query, key, value)]
        runs = [
            torch.autograd.grad(pyramid_markov_attn(*leaves, pyramid, backend="tiled"), leaves, grad_out)
            for _ in range(3)
        ]
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(first, again) for first, again in zip(runs[0], run))
