"""Hand-made neighborhoods are checked before any key is read; rectangles cover exactly what windows see."""

import random

import numpy as np
import pytest
import torch

from mvar_kernels import Neighborhood, Pyramid, neighborhood_attn, spatial_markov_attn
from mvar_kernels.backends.rectangles import key_cuts, query_cuts
from mvar_kernels.pyramid import WindowBlock

from kernel_cases import CPU_BACKENDS, random_neighborhood, random_neighborhood_of_rank

BLOCK = WindowBlock(0, (2, 2), 0, (2, 3), (2, 2))


def of(*blocks, queries=4, keys=6):
    return Neighborhood(blocks, queries, keys)


WRONG = {
    "keys beyond the end": of(BLOCK._replace(key_offset=1)),
    "keys before the start": of(BLOCK._replace(key_offset=-1)),
    "a window larger than its grid": of(BLOCK._replace(window=(3, 2))),
    "a window of nothing": of(BLOCK._replace(window=(0, 2))),
    "an empty grid": of(BLOCK._replace(query_grid=(0, 2)), queries=0),
    "queries without a block": of(BLOCK, queries=5),
    "queries beyond the end": of(BLOCK, queries=3),
    "queries with a gap": of(BLOCK, BLOCK._replace(query_offset=5), queries=9),
    "queries out of order": of(BLOCK._replace(query_offset=4), BLOCK, queries=8),
    "queries whose blocks are apart": of(BLOCK, BLOCK._replace(query_offset=4), BLOCK, queries=8),
    "a key twice": of(BLOCK, BLOCK._replace(key_offset=3), keys=9),
    "no blocks": of(),
    "floats": of(BLOCK._replace(key_offset=0.0)),
    "an int for a grid": of(BLOCK._replace(window=(2,))),
}


@pytest.mark.parametrize("neighborhood", WRONG.values(), ids=list(WRONG))
@pytest.mark.parametrize("backend", ["auto", *CPU_BACKENDS, "triton"])
def test_what_is_no_neighborhood_is_one_line(neighborhood, backend):
    query = torch.zeros(1, neighborhood.num_queries, 1, 8)
    key = torch.zeros(1, neighborhood.num_keys, 1, 8)
    with pytest.raises((ValueError, TypeError), match=r"^neighborhood ") as caught:
        neighborhood_attn(query, key, key, neighborhood, backend=backend)
    assert "\n" not in str(caught.value)


def test_compiled_code_checks_as_well():
    neighborhood = WRONG["keys beyond the end"]
    tensor = torch.zeros(1, 6, 1, 8)
    attend = torch.compile(neighborhood_attn, backend="aot_eager", fullgraph=True)
    with pytest.raises(ValueError, match="neighborhood has 6 keys, which does not hold"):
        attend(tensor[:, :4], tensor, tensor, neighborhood)


def test_a_pyramid_is_no_neighborhood():
    tensor = torch.zeros(1, 4, 1, 8)
    with pytest.raises(TypeError, match="neighborhood must be a Neighborhood, got Pyramid"):
        neighborhood_attn(tensor, tensor, tensor, Pyramid((2,)))


def test_whatever_we_make_passes(seed):
    rng = random.Random(seed)
    for _ in range(50):
        random_neighborhood(rng).check()
    pyramid = Pyramid((1, 3, 4, 6), 3, 1, 2)
    for scale in range(4):
        pyramid.step_neighborhood(scale).check()


def test_scale_must_be_a_number():
    tensor = torch.zeros(1, 2, 2, 1, 8)
    assert spatial_markov_attn(tensor, tensor, tensor, 3, scale=torch.tensor(0.5)).shape == tensor.shape
    with pytest.raises(TypeError, match="scale must be a number or None, got 'a'"):
        spatial_markov_attn(tensor, tensor, tensor, 3, scale="a")


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
            # Which place of keys each place of queries sees.
            windows, place = block.axis(axis), np.arange(block.key_grid[axis])
            mask = torch.from_numpy((place >= windows.starts[:, None]) & (place < windows.stops[:, None]))
            for cut in query_cuts(block, axis, 4):
                assert cut.keys == hull(mask[cut.queries.start : cut.queries.stop].any(0))
            for cut in key_cuts(block, axis, 4):
                seeing = mask[:, cut.keys.start : cut.keys.stop].any(1)
                assert int(seeing.sum()) == len(cut.queries)
                assert seeing[cut.queries.start : cut.queries.stop].all()
