"""Rectangles of queries and keys cover exactly what windows see."""

import random

import pytest
import torch

from mvar_kernels.backends.rectangles import key_cuts, query_cuts

from kernel_cases import random_neighborhood_of_rank


def hull(seen):
    """Return the range from first to last; neighbouring windows may leave keys between them unseen."""
    places = seen.nonzero().flatten().tolist()
    return range(places[0], places[-1] + 1)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_cuts_cover_what_windows_see(rank, seed):
    rng = random.Random(seed + rank)
    for _ in range(40):
        block = random_neighborhood_of_rank(rng, rank)[1].blocks[0]
        for axis in range(rank):
            # Which key place each query place sees, from the mask of the axis.
            order, key_order = block.axis(axis).order, block.key_order(axis)
            mask = torch.from_numpy(block._axis_mask(axis)[order][:, key_order])
            for cut in query_cuts(block, axis, 4):
                assert cut.keys == hull(mask[cut.queries.start : cut.queries.stop].any(0))
            for cut in key_cuts(block, axis, 4):
                seeing = mask[:, cut.keys.start : cut.keys.stop].any(1)
                assert int(seeing.sum()) == len(cut.queries)
                assert seeing[cut.queries.start : cut.queries.stop].all()
