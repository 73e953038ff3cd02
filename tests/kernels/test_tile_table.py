"""The tile table is a pure, total function, and an architecture's own row goes before its family's."""

import itertools

import pytest

from mvar_kernels.backends.triton import tile_table
from mvar_kernels.backends.triton.tile_config import SHARED_BYTES, Config, Row, family_of
from mvar_kernels.backends.triton.tile_table import architecture_of, rows_for, tile_row


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
