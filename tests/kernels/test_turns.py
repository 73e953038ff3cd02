"""Tiles of one turn see no common key, and a turn has tiles enough for several threads."""

import random

from mvar_kernels import Neighborhood
from mvar_kernels.backends.common.rectangles import query_tiles
from mvar_kernels.backends.tiled.turns import in_turns

from kernel_cases import random_grid_neighborhood


def keys_of(tile, width):
    return {row * width + col for row in tile.key_rows for col in tile.key_cols}


def test_no_key_is_seen_twice_in_a_turn(seed):
    rng = random.Random(seed)
    for _ in range(60):
        block = random_grid_neighborhood(rng, largest=40).blocks[0]
        tiles = query_tiles(block, 8, 8)
        turns = in_turns(tiles)
        ordered = [tile for turn in turns for tile in turn]
        assert len(ordered) == len(tiles) and set(ordered) == set(tiles), block
        for turn in turns:
            seen = [keys_of(tile, block.key_grid[1]) for tile in turn]
            assert turn and sum(map(len, seen)) == len(set().union(*seen)), block


def test_a_large_grid_has_few_turns_of_many_tiles():
    for side, expected in ((64, [16] * 4), (128, [16] * 16)):
        block = Neighborhood.of_grids((side, side), (side, side), (7, 7)).blocks[0]
        assert [len(turn) for turn in in_turns(query_tiles(block, 8, 8))] == expected
