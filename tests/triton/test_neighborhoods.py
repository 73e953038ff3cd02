"""Every option of a neighborhood, forward and backward: ranks, steps, widths of values, shared heads."""

import random

import pytest
import torch

from mvar_kernels import Neighborhood
from mvar_kernels.backends.triton.schedule import tables
from mvar_kernels.pyramid import WindowBlock

from chosen_cases import once, some
from kernel_cases import (
    assert_as_in_float64,
    assert_windows_in_slices,
    assert_within_twice_plain_pytorch,
    draw_inputs,
    random_neighborhood_of_rank,
)
from triton_support import DEVICE, HALF, compare

# More tokens than a tile has, along each axis.
GRIDS = {1: (75,), 2: (9, 11), 3: (5, 6, 7)}
STEPS = {
    "plain": {},
    "strided": {"stride": 2},
    "dilated": {"dilation": 2},
    "causal": {"is_causal": True},
    "all": {"stride": 3, "dilation": 2, "is_causal": True},
}


def of_rank(rank, steps="plain"):
    return Neighborhood.of_grids(GRIDS[rank], GRIDS[rank], 3, **STEPS[steps])


@pytest.mark.parametrize("rank", GRIDS)
@pytest.mark.parametrize("part", some(range(10), 1))
def test_windows_exactly(rank, part, seed):
    """With q = 0 and one-hot values the output is the window; one-hot dO shows it in dv."""
    rng = random.Random(seed + 10 * rank + part)
    for index in range(30):
        # Most of them small, as the interpreter takes a second for a hundred tokens.
        most_tokens = 96 if index % 10 == 0 else 30
        arguments, neighborhood = random_neighborhood_of_rank(rng, rank, most_tokens)
        assert_windows_in_slices(neighborhood, "triton", DEVICE, f"{index}: {arguments}")


@pytest.mark.parametrize("rank, steps, cosine", once(list(GRIDS), list(STEPS), [False, True]))
def test_every_option(rank, steps, cosine):
    compare(of_rank(rank, steps), batch=1, heads=2, dim=16, cosine=cosine)


@pytest.mark.parametrize("dim, width", some([(16, 64), (64, 16), (8, 40), (33, 7), (16, 200)], 2))
def test_values_of_another_width(dim, width):
    compare(of_rank(2), batch=1, heads=1, dim=dim, width=width)
    compare(of_rank(3, "all"), batch=1, heads=1, dim=dim, width=width, cosine=True)


@pytest.mark.parametrize("heads, key_heads", [(4, 2), (3, 1)])
def test_heads_that_share_keys(heads, key_heads):
    """Factors of cosine attention differ in sign between heads that share keys."""
    compare(of_rank(1, "dilated"), batch=2, heads=heads, key_heads=key_heads, dim=16, width=24)
    inputs = list(
        draw_inputs(of_rank(2), heads=heads, key_heads=key_heads, dim=16, cosine=True, device=DEVICE)
    )
    inputs[3][1::2] *= -1
    assert_as_in_float64("triton", inputs, of_rank(2))


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("rank", GRIDS)
def test_half_precision(dtype, rank):
    for steps in ("plain", "all"):
        assert_within_twice_plain_pytorch("triton", of_rank(rank, steps), dtype, None, device=DEVICE)


def test_extra_keys_and_a_dilated_window_in_one_softmax():
    window = Neighborhood.of_grids((7, 9), (7, 9), 3, dilation=2).blocks[0]
    extra = WindowBlock(0, (7, 9), 63, (1, 5), (1, 5))
    for blocks in ((window, extra), (extra, window)):
        compare(Neighborhood(blocks, 63, 68), batch=1)


def test_a_shared_head_s_gradients_have_the_same_bits_on_every_run():
    first, second = (
        compare(of_rank(3, "strided"), batch=1, heads=4, key_heads=2, dim=16)[2] for _ in range(2)
    )
    assert all(torch.equal(one, other) for one, other in zip(first[:3], second[:3]))


def test_tiles_of_three_dimensions_have_sixteen_features_at_most():
    for grid, window in (((8, 16, 16), (3, 7, 7)), ((2, 20, 20), 3), ((16, 9, 9), (11, 3, 3))):
        neighborhood = Neighborhood.of_grids(grid, grid, window)
        for by in ("query", "key"):
            assert tables(neighborhood, by, 8, 8, 64, torch.float32, torch.device("cpu")).num_features == 16
