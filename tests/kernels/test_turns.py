"""Tiles of one turn see no common key, and a turn has tiles enough for several threads."""

import itertools
import random

from mvar_kernels import Neighborhood, Pyramid
from mvar_kernels.backends.rectangles import query_tiles
from mvar_kernels.backends.tiled.turns import in_turns

from kernel_cases import random_grid_neighborhood


def keys_of(tile, width):
    return {row * width + col for row, col in itertools.product(*tile.keys)}


def test_no_key_is_seen_twice_in_a_turn(seed):
    rng = random.Random(seed)
    for _ in range(60):
        block = random_grid_neighborhood(rng, largest=40).blocks[0]
        check([block])


def test_no_key_of_any_block_is_seen_twice_in_a_turn(seed):
    rng = random.Random(seed)
    for _ in range(60):
        coarse, fine = sorted(rng.randint(1, 40) for _ in range(2))
        pyramid = Pyramid((coarse, fine, fine + rng.randint(0, 9)), rng.randint(1, 7), 0, 2)
        check(pyramid.neighborhood().by_queries()[-1])


def check(blocks):
    per_block = [query_tiles(block, (8, 8)) for block in blocks]
    turns = in_turns(per_block)
    assert sorted(number for turn in turns for number in turn) == list(range(len(per_block[0]))), blocks
    for block, tiles in zip(blocks, per_block):
        for turn in turns:
            seen = [keys_of(tiles[number], block.key_grid[1]) for number in turn]
            assert turn and sum(map(len, seen)) == len(set().union(*seen)), blocks


def test_a_large_grid_has_few_turns_of_many_tiles():
    for side, expected in ((64, [16] * 4), (128, [16] * 16)):
        block = Neighborhood.of_grids((side, side), (side, side), (7, 7)).blocks[0]
        assert [len(turn) for turn in in_turns([query_tiles(block, (8, 8))])] == expected
