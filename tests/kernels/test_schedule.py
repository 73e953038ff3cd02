"""The tile tables say exactly who attends to whom, for any neighborhood and in both directions."""

import random

import pytest
import torch

from mvar_kernels import Pyramid
from mvar_kernels.backends.triton.schedule import tables
from mvar_kernels.pyramid import Neighborhood

from kernel_cases import PYRAMID_256, PYRAMID_DIGITS, random_neighborhood, random_neighborhood_of_rank


def expanded(neighborhood, by, height=8, width=8, chunk=64):
    """The mask that the tables describe, and how often each fixed token appears."""
    t = tables(neighborhood, by, height, width, chunk, torch.float32, torch.device("cpu"))
    fixed_length = neighborhood.num_queries if by == "query" else neighborhood.num_keys
    looped_length = neighborhood.num_keys if by == "query" else neighborhood.num_queries
    mask = torch.zeros(fixed_length + 1, looped_length, dtype=torch.int64)
    owned = torch.zeros(fixed_length + 1, dtype=torch.int64)
    for tile in range(t.num_tiles):
        fixed = t.fixed[tile].long()
        owned[fixed] += 1
        chunks = range(int(t.start[tile]), int(t.start[tile + 1]))
        for c in chunks:
            score = t.fixed_masks[t.fixed_mask[tile]] @ t.looped_masks[t.looped_mask[c]].T
            assert ((score == 0) | (score <= -(2.0**100))).all()
            mask.index_put_(
                (fixed[:, None].expand(-1, chunk), t.looped[c].long()[None].expand(len(fixed), -1)),
                (score == 0).long(),
                accumulate=True,
            )
    assert (owned[:-1] == 1).all(), "every fixed token belongs to one tile"
    return mask[:-1], t


def check(neighborhood, **shape):
    expected = neighborhood.mask().long()
    for by in ("query", "key"):
        mask, _ = expanded(neighborhood, by, **shape)
        assert torch.equal(mask if by == "query" else mask.T, expected), (by, neighborhood)


def test_random_neighborhoods(seed):
    rng = random.Random(seed)
    for _ in range(60):
        check(random_neighborhood(rng))


@pytest.mark.parametrize(
    "pyramid",
    [
        PYRAMID_256,
        PYRAMID_DIGITS,
        Pyramid((1,)),
        Pyramid((24, 40), 13),
        Pyramid(((3, 30), (17, 5)), [(2, 9), None]),
    ],
)
def test_pyramids(pyramid):
    check(pyramid.neighborhood())
    check(pyramid.causal_neighborhood())


@pytest.mark.parametrize(
    "shape",
    [dict(height=4, width=8, chunk=32), dict(height=4, width=4, chunk=16), dict(height=8, width=8, chunk=32)],
)
def test_other_tile_shapes(shape, seed):
    rng = random.Random(seed)
    for _ in range(15):
        check(random_neighborhood(rng), **shape)


@pytest.mark.parametrize("grid, window", [((40, 40), (31, 31)), ((70, 70), (63, 64)), ((33, 20), (9, 15))])
def test_large_windows_need_no_more_features(grid, window):
    neighborhood = Neighborhood.of_grids(grid, grid, window)
    check(neighborhood)
    assert {expanded(neighborhood, by)[1].num_features for by in ("query", "key")} == {16}


def test_counts_of_the_256_px_pyramid():
    """Small scales share tiles; a change that loses this would show here."""
    _, t = expanded(PYRAMID_256.neighborhood(), "query")
    assert (t.num_tiles, t.num_chunks, t.num_features) == (11, 21, 16)


@pytest.mark.parametrize("height, width, features", [(16, 8, 32), (4, 28, 32), (8, 8, 16)])
def test_larger_tiles_have_more_features(height, width, features):
    neighborhood = Neighborhood.of_grids((20, 40), (20, 40), (7, 7))
    check(neighborhood, height=height, width=width)
    assert expanded(neighborhood, "query", height, width)[1].num_features == features


def test_a_tile_with_more_rows_and_columns_than_features_is_refused():
    with pytest.raises(ValueError, match="at most 32 together, got 16 x 32"):
        expanded(Neighborhood.of_grids((4, 4), (4, 4), (3, 3)), "query", 16, 32)


def test_parts_that_share_a_tile_fit_its_features():
    """Windowed grids of 2 x 2 to 4 x 4 have 4, 6 and 8 features; the third begins another tile."""
    neighborhood = Pyramid((2, 3, 4), [(1, 2), (1, 2), (1, 2)]).neighborhood()
    check(neighborhood)
    for by in ("query", "key"):
        _, t = expanded(neighborhood, by)
        assert (t.num_tiles, t.num_features) == (2, 16)


def test_equal_masks_are_stored_once():
    small, large = (
        tables(
            Neighborhood.of_grids((n, n), (n, n), (7, 7)),
            "query",
            8,
            8,
            64,
            torch.float32,
            torch.device("cpu"),
        )
        for n in (64, 128)
    )
    assert large.num_tiles == 4 * small.num_tiles
    assert (
        large.fixed_masks.numel() == small.fixed_masks.numel()
        and large.looped_masks.numel() == small.looped_masks.numel()
    )


def test_padding_repeats_a_token_of_the_tile():
    """Padded slots load only tokens of their own tile: nothing foreign is read, not even to be masked."""
    neighborhood = PYRAMID_256.neighborhood()
    for by in ("query", "key"):
        _, t = expanded(neighborhood, by)
        full = neighborhood.mask() if by == "query" else neighborhood.mask().T
        for tile in range(t.num_tiles):
            fixed = t.fixed[tile][t.fixed[tile] < 680].long()
            looped = t.looped[int(t.start[tile]) : int(t.start[tile + 1])].flatten().long().unique()
            assert full[fixed][:, looped].any(0).all()


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_random_neighborhoods_of_every_rank(rank, seed):
    rng = random.Random(seed + rank)
    for _ in range(40):
        shape = rng.choice([(8, 8, 64), (4, 8, 32), (4, 4, 16)])
        check(random_neighborhood_of_rank(rng, rank)[1], **dict(zip(("height", "width", "chunk"), shape)))
