"""Who attends to whom, against a loop written from the definition."""

import copy
import dataclasses
import pickle
import random

import numpy as np
import pytest
import torch

from mvar_kernels import Pyramid, neighborhood_attn, pyramid_markov_attn, spatial_markov_attn
from mvar_kernels.neighborhood import axis_windows
from mvar_kernels.pyramid import Neighborhood

from kernel_cases import (
    CPU_BACKENDS,
    PYRAMID_256,
    assert_windows_in_slices,
    draw_inputs,
    random_grid_neighborhood,
    random_neighborhood,
    random_pyramid,
)


def attended(i, n_q, n_k, kernel):
    """Keys of query i along one axis, by the words of the definition."""
    center = ((2 * i + 1) * n_k) // (2 * n_q)
    k = min(kernel, n_k)
    start = center - k // 2
    if start < 0:
        start = 0
    if start > n_k - k:
        start = n_k - k
    return set(range(start, start + k))


def test_masks_against_a_double_loop(seed):
    rng = random.Random(seed)
    for _ in range(40):
        neighborhood = random_grid_neighborhood(rng, largest=9)
        block = neighborhood.blocks[0]
        mask = neighborhood.mask()
        for query in range(neighborhood.num_queries):
            row, col = divmod(query, block.query_grid[1])
            rows = attended(row, block.query_grid[0], block.key_grid[0], block.window[0])
            cols = attended(col, block.query_grid[1], block.key_grid[1], block.window[1])
            expected = {r * block.key_grid[1] + c for r in rows for c in cols}
            assert set(mask[query].nonzero().flatten().tolist()) == expected, (neighborhood, query)


def window_starts(num_queries, num_keys, kernel):
    return tuple(axis_windows(num_queries, num_keys, kernel).starts)


def test_equal_grids_are_natten_s_rule():
    """start = clamp(i - k // 2, 0, n - k): shifted at the border, never cut."""
    assert window_starts(5, 5, 3) == (0, 0, 1, 2, 2)
    assert window_starts(6, 6, 4) == (0, 0, 0, 1, 2, 2)
    assert window_starts(3, 3, 7) == (0, 0, 0)


def test_cross_scale_windows_look_at_the_corresponding_place():
    assert window_starts(4, 2, 1) == (0, 0, 1, 1)
    assert window_starts(2, 4, 1) == (1, 3)
    assert window_starts(1, 5, 3) == (1,)


def test_pyramid_masks_against_a_double_loop(seed):
    """Windows in the scale itself and in those before it, from the words of the definition."""
    rng = random.Random(seed)
    for _ in range(200):
        sides = [(rng.randint(1, 6), rng.randint(1, 6)) for _ in range(rng.randint(1, 5))]
        kernels = [rng.choice([None, (rng.randint(1, 8), rng.randint(1, 8))]) for _ in sides]
        dense_scales, previous = rng.randint(0, len(sides)) // 2, rng.randrange(len(sides))
        pyramid = Pyramid(sides, kernels, dense_scales, previous)
        expected = brute_force(sides, kernels, dense_scales, previous)
        assert torch.equal(pyramid.mask(), expected), pyramid
        assert pyramid.attended_pairs() == int(expected.sum())
        for scale in range(len(sides)):
            seen = slice(pyramid.offsets[pyramid.first_seen(scale)], pyramid.scale_slice(scale).stop)
            step = expected[pyramid.scale_slice(scale), seen]
            assert torch.equal(pyramid.step_neighborhood(scale).mask(), step)


def brute_force(sides, kernels, dense_scales, previous_scales):
    """Return the mask (L, L) of a pyramid, one query and one key at a time."""
    tokens = [(s, r, c) for s, (h, w) in enumerate(sides) for r in range(h) for c in range(w)]
    mask = torch.zeros(len(tokens), len(tokens), dtype=torch.bool)
    for i, (scale, row, col) in enumerate(tokens):
        for key_scale in range(max(0, scale - previous_scales), scale + 1):
            kernel = sides[key_scale] if scale < dense_scales else kernels[scale] or sides[key_scale]
            rows = attended(row, sides[scale][0], sides[key_scale][0], kernel[0])
            cols = attended(col, sides[scale][1], sides[key_scale][1], kernel[1])
            for j, (other, r, c) in enumerate(tokens):
                if other == key_scale and r in rows and c in cols:
                    mask[i, j] = True
    return mask


def test_without_previous_scales_the_mask_is_block_diagonal():
    mask = Pyramid((1, 2, 4), 3).mask()
    scale = torch.tensor([0] + [1] * 4 + [2] * 16)
    assert not mask[scale[:, None] != scale[None, :]].any()


def test_whole_scales_are_one_row_of_keys():
    """VAR's keys are one block, whatever the number of scales; small scales are whole under any window."""
    pyramid = Pyramid((1, 2, 3, 4, 6), 3, 0, 4)
    assert [len(blocks) for blocks in pyramid.neighborhood().by_queries()] == [1, 1, 1, 2, 3]
    assert pyramid.neighborhood().by_queries()[-1][0].key_grid == (1, 1 + 4 + 9)
    assert len(Pyramid((1, 2, 3, 4, 6)).causal_neighborhood().blocks) == 5


def test_selected_scales_keep_what_they_see():
    pyramid = Pyramid((1, 2, 3, 4, 6, 8), 3, 2, 2)
    for scales in (range(0, 6), range(2, 5), range(3, 4)):
        tokens = slice(pyramid.offsets[scales.start], pyramid.scale_slice(scales.stop - 1).stop)
        selected = pyramid.select(scales)
        assert torch.equal(selected.mask(), pyramid.mask()[tokens, tokens])
        assert selected.previous_scales == min(2, len(scales) - 1)
    assert pyramid.select(range(0, 6)) == pyramid
    for scales in (range(0, 6, 2), range(1, 6, 3)):  # gaps: the own scale alone
        assert pyramid.select(scales).previous_scales == 0
        own = [pyramid.mask()[pyramid.scale_slice(s), pyramid.scale_slice(s)] for s in scales]
        assert torch.equal(pyramid.select(scales).mask(), torch.block_diag(*own).bool())
    for wrong in (range(3, -1, -1), range(2, 7), range(-2, 0), range(0), [0, 1]):
        with pytest.raises((ValueError, TypeError), match=r"^scales must be a"):
            pyramid.select(wrong)


@pytest.mark.parametrize(
    "pyramid",
    [
        Pyramid((1, 2, 3, 5), 3, 1, 1),
        Pyramid([1, (3, 4), 6], [None, 3, (2, 3)], 0, 2),
        Pyramid((1, 2, 3, 4, 6, 8), 3, 2, 2).select(range(2, 5)),
        Pyramid((1, 9, 9), [None, 3, 5]).select(range(0, 3, 2)),
    ],
)
def test_pyramids_are_copied_and_changed_as_dataclasses_are(pyramid):
    for same in (
        copy.copy(pyramid),
        copy.deepcopy(pyramid),
        pickle.loads(pickle.dumps(pyramid)),
        dataclasses.replace(pyramid),
        Pyramid(pyramid.sides, pyramid.kernel_size, pyramid.dense_scales, pyramid.previous_scales),
    ):
        assert same == pyramid and hash(same) == hash(pyramid) and torch.equal(same.mask(), pyramid.mask())
    doubled = [(2 * h, 2 * w) for h, w in pyramid.sides]
    changed = dataclasses.replace(pyramid, sides=doubled)
    assert changed == Pyramid(doubled, pyramid.kernel_size, pyramid.dense_scales, pyramid.previous_scales)
    assert dataclasses.replace(pyramid, previous_scales=0).mask().sum() <= pyramid.mask().sum()
    with pytest.raises(ValueError, match="windows"):
        dataclasses.replace(pyramid, windows=pyramid.windows)


@pytest.mark.parametrize("kind", [np.array, torch.tensor, lambda value: [np.int64(v) for v in value]])
def test_arrays_tensors_and_their_numbers_are_numbers(kind):
    expected = Pyramid((1, 2, 9), (3, 5), 1, 1)
    assert Pyramid(kind([1, 2, 9]), tuple(kind([3, 5])), kind([1])[0], kind([1])[0]) == expected
    x = torch.randn(1, 9, 9, 1, 8)
    assert torch.equal(spatial_markov_attn(x, x, x, kind([3, 5])), spatial_markov_attn(x, x, x, (3, 5)))
    if kind in (np.array, torch.tensor):
        assert Pyramid(kind([[1, 1], [2, 2], [9, 9]]), kind([3, 5]), 1, 1) == expected
        for wrong in (kind([1.0, 2.0]), kind([True, True])):
            with pytest.raises(TypeError, match="sides must be an int"):
                Pyramid(wrong)


def test_causal_mask_is_var_s(seed):
    pyramid = random_pyramid(random.Random(seed))
    scale = torch.cat([torch.full((h * w,), s) for s, (h, w) in enumerate(pyramid.sides)])
    assert torch.equal(pyramid.causal_mask(), scale[:, None] >= scale[None, :])


def test_the_256_px_pyramid():
    assert PYRAMID_256.length == 680 and PYRAMID_256.num_scales == 10
    assert PYRAMID_256.offsets == (0, 1, 5, 14, 30, 55, 91, 155, 255, 424)
    assert PYRAMID_256.windows[7:] == ((10, 10), (7, 7), (7, 7)), (
        "the eighth scale is dense although a 7 x 7 window would fit"
    )
    assert round(PYRAMID_256.attended_pairs() / 680**2, 3) == 0.080


def test_kernel_size_per_scale():
    pyramid = Pyramid([(3, 4), 5, 6], kernel_size=[None, 3, (2, 9)], dense_scales=0)
    assert pyramid.windows == ((3, 4), (3, 3), (2, 6))
    assert Pyramid([4, 4], kernel_size=(2, 3)).windows == ((2, 3), (2, 3))
    assert Pyramid([4, 4], kernel_size=3, dense_scales=1).windows == ((4, 4), (3, 3))
    assert Pyramid([4, 4], kernel_size=3, dense_scales=2).windows == ((4, 4), (4, 4))
    assert Pyramid([6, 9]).windows == ((6, 6), (7, 7)), "the default is 7 x 7"


def test_select_keeps_the_windows():
    selected = Pyramid([2, (3, 5), 9, 9], kernel_size=3, dense_scales=2).select(range(1, 3))
    assert selected.sides == ((3, 5), (9, 9))
    assert selected.windows == ((3, 5), (3, 3))
    assert selected.offsets == (0, 15)


def test_dense_blocks_are_those_whose_window_is_the_grid():
    dense, windowed = Pyramid([3, (4, 5)], kernel_size=[None, (4, 3)]).neighborhood().blocks
    assert dense.is_dense is True
    assert windowed.is_dense is False


def test_value_semantics():
    first, second = Pyramid([1, 2, 8], 3, 1), Pyramid(((1, 1), (2, 2), (8, 8)), [None, 3, 3])
    assert first == second and hash(first) == hash(second) and first != Pyramid([1, 2, 8], 5)
    assert first != "a pyramid"
    assert pickle.loads(pickle.dumps(first)) == first
    assert pickle.loads(pickle.dumps(first)).offsets == (0, 1, 5)
    assert "length=69" in repr(first) and "previous" not in repr(first)
    adjacent = Pyramid([1, 2, 8], 3, 1, 1)
    assert adjacent != first and "previous_scales=1" in repr(adjacent)
    assert pickle.loads(pickle.dumps(adjacent)) == adjacent
    assert Pyramid([1, 2, 3], 3, 0, 2) == Pyramid([1, 2, 3], 9, 3, 2)


@pytest.mark.parametrize("name", ["sides", "windows", "offsets", "length", "of_no_field"])
def test_immutable(name):
    pyramid = Pyramid([1, 2, 8])
    with pytest.raises(AttributeError, match=name):
        setattr(pyramid, name, 3)
    with pytest.raises(AttributeError, match=name):
        delattr(pyramid, name)


def test_equal_pyramids_share_one_neighborhood():
    """Caches of tables and masks are keyed by it."""
    assert (
        Pyramid([1, 2, 8], 3, 1).neighborhood()
        is Pyramid(((1, 1), (2, 2), (8, 8)), [None, 3, 3]).neighborhood()
    )


def test_neighborhoods_survive_the_operators_schema(seed):
    rng = random.Random(seed)
    for _ in range(30):
        neighborhood = random_neighborhood(rng)
        flat = neighborhood.encode()
        assert all(type(value) is int for value in flat) and Neighborhood.decode(flat) == neighborhood


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (([],), ValueError, "at least one scale"),
        (([0],), ValueError, "sides must be at least 1, got 0"),
        (([(0, 3)],), ValueError, r"^sides .*\(0, 3\)"),
        (([(3, 0)],), ValueError, r"^sides .*\(3, 0\)"),
        (([1.5],), TypeError, "sides must be an int or a tuple"),
        ((5,), TypeError, "sides must be a sequence"),
        (([(1, 2), (1, 2, 3)],), ValueError, "sides must be an int or a .* pair"),
        (([(1, 2, 3, 4)],), ValueError, "sides must have 1 to 3 axes, got 4"),
        (([2, 3], 0), ValueError, "kernel_size must be at least 1"),
        (([2, 3], [3]), ValueError, r"one entry per scale \(2\), got 1"),
        (([2, 3], 3, 3), ValueError, r"dense_scales must be between 0 and the number of scales \(2\), got 3"),
        (([2, 3], 3, -1), ValueError, "dense_scales"),
        (([2, 3], True), TypeError, "^kernel_size must be an int"),
        (([2, 3], 3, 1.5), TypeError, "^dense_scales must be an int"),
        (([2, 3], 3, 0, 2), ValueError, r"^previous_scales .* number of scales \(2\), got 2"),
        (([2, 3], 3, 0, -1), ValueError, "^previous_scales .* got -1"),
        (([2, 3], 3, 0, 0.5), TypeError, "^previous_scales must be an int"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        Pyramid(*arguments)


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
