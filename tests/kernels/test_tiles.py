"""The tile table is total, own rows go before those of a family; which neighborhoods have tiles."""

import itertools

import pytest

from mvar_kernels import Pyramid
from mvar_kernels.backends.triton import tile_table
from mvar_kernels.backends.triton.tile_config import SHARED_BYTES, Config, Row, family_of
from mvar_kernels.backends.triton.tile_parts import unsupported
from mvar_kernels.backends.triton.tile_table import architecture_of, rows_for, tile_row
from mvar_kernels.pyramid import Neighborhood, WindowBlock


@pytest.mark.parametrize("architecture", [*SHARED_BYTES, "sm_103", "gfx950"])
def test_every_case_has_a_row(architecture):
    for dim, size, cosine in itertools.product(range(1, 257), (2, 4), (False, True)):
        row = tile_row(architecture, dim, size, cosine)
        assert row.max_dim >= dim and (row.bytes, row.cosine) == (size, cosine)
        assert row.family in (architecture, family_of(architecture))
        for config in (row.forward, row.dq, row.dkdv):
            # Dot operands have at least 16 rows, and no side but a power of two.
            assert config.size >= 16 and config.chunk >= 16
            assert all(side & (side - 1) == 0 for side in (*config[:3], config.num_warps)), config
            assert config.num_stages in (1, 2, 3, 4)


def test_no_row_beyond_256():
    with pytest.raises(ValueError, match="head dimension 257"):
        tile_row("sm_90", 257, 2, False)


def test_an_architectures_own_row_wins(monkeypatch):
    own = Row("sm_89", 2, 64, False, *[Config(4, 8, 64, 8, 3)] * 3)
    monkeypatch.setattr(tile_table, "ROWS", (*tile_table.ROWS, own))
    assert rows_for("sm_89")[0] is own and own not in rows_for("sm_80") and own not in rows_for("gfx942")


def test_rows_are_listed_once():
    keys = [row[:4] for row in tile_table.ROWS]
    assert len(set(keys)) == len(keys)


def test_tensors_on_the_cpu_count_as_sm_80():
    import torch

    assert architecture_of(torch.device("cpu")) == "sm_80"


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
