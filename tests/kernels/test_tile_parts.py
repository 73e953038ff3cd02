"""Which neighborhoods have tiles of keys."""

import pytest

from mvar_kernels import Pyramid
from mvar_kernels.backends.triton.tile_parts import unsupported
from mvar_kernels.pyramid import Neighborhood, WindowBlock

# 3 x 3 queries with windows of 2 x 2 over keys 4 to 12.
WINDOWED = WindowBlock(0, (3, 3), 4, (3, 3), (2, 2))


def with_keys(offset, count):
    """`WINDOWED` and one more query that sees `count` keys from `offset` on, in either order."""
    dense = WindowBlock(9, (1, 1), offset, (1, count), (1, count))
    return [Neighborhood(blocks, 10, 20) for blocks in ((WINDOWED, dense), (dense, WINDOWED))]


@pytest.mark.parametrize("offset, count", [(0, 5), (12, 3), (6, 2)])
def test_a_window_that_shares_a_part_of_its_keys_is_unsupported(offset, count):
    for neighborhood in with_keys(offset, count):
        assert "shares keys" in unsupported(neighborhood)


@pytest.mark.parametrize("offset, count", [(0, 20), (4, 9)])
def test_a_window_may_share_all_of_its_keys(offset, count):
    for neighborhood in with_keys(offset, count):
        assert unsupported(neighborhood) is None


def test_windows_over_two_grids_of_the_same_keys_are_unsupported():
    other = WindowBlock(9, (1, 1), 4, (1, 9), (1, 4))
    assert "another grid" in unsupported(Neighborhood((WINDOWED, other), 10, 20))


@pytest.mark.parametrize("offset, count", [(0, 4), (13, 7), (2, 1)])
def test_windows_with_keys_of_their_own_are_supported(offset, count):
    for neighborhood in with_keys(offset, count):
        assert unsupported(neighborhood) is None


def test_all_that_a_pyramid_makes_is_supported():
    pyramid = Pyramid([1, 3, 9, (4, 6)], kernel_size=3)
    assert unsupported(pyramid.neighborhood()) is None
    assert unsupported(pyramid.causal_neighborhood()) is None, "dense blocks may share keys"
    assert unsupported(Pyramid([1, 3, 9, (4, 6)], 3, 2, 2).neighborhood()) is None
