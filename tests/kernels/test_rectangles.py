"""Rectangles of queries and keys cover exactly what windows see."""

import random

from mvar_kernels.backends.rectangles import key_tiles, query_tiles

from kernel_cases import random_neighborhood


def hull(seen):
    """Return the range from first to last; neighbouring windows may leave keys between them unseen."""
    places = seen.nonzero().flatten().tolist()
    return range(places[0], places[-1] + 1)


def test_tiles_cover_what_windows_see(seed):
    rng = random.Random(seed)
    for _ in range(20):
        block = random_neighborhood(rng).blocks[0]
        mask = block.mask().view(*block.query_grid, *block.key_grid)
        for tile in query_tiles(block, 8, 8) + key_tiles(block, 8, 8):
            q = mask[
                tile.query_rows.start : tile.query_rows.stop, tile.query_cols.start : tile.query_cols.stop
            ]
            rows, cols = q.any(3).any(1).any(0), q.any(2).any(1).any(0)
            inside = q[
                :, :, tile.key_rows.start : tile.key_rows.stop, tile.key_cols.start : tile.key_cols.stop
            ]
            if tile in query_tiles(block, 8, 8):
                assert inside.sum() == q.sum() and hull(rows) == tile.key_rows and hull(cols) == tile.key_cols
            else:
                seen = mask[
                    :, :, tile.key_rows.start : tile.key_rows.stop, tile.key_cols.start : tile.key_cols.stop
                ]
                assert inside.sum() == seen.sum()
