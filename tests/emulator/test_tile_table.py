"""The sweep of the tile table leaves nothing out, and a part of it runs here.

All of it is tests/triton/test_tile_table.py, which `make test-emulated` runs.
"""

import pytest

from mvar_kernels.backends.triton.tile_table import ROWS

from chosen_cases import once
from machine_code_support import CAPABILITIES, MACHINE_CODE

pytestmark = MACHINE_CODE
SWEPT = ("sm_80", "sm_90", "sm_100", "sm_120", "gfx942")


def test_every_row_and_variant_is_swept_in_every_type():
    from table_cases import KINDS, VARIANTS, table_cases

    cases = [case for architecture in SWEPT for case in table_cases(architecture)]
    assert {case.row for case in cases} == set(ROWS)
    for row in ROWS:
        own = [case for case in cases if case.row == row]
        assert {case.variant for case in own} == set(VARIANTS), row
        assert {case.kind for case in own} == set(KINDS[row.bytes]), row
        assert {case.dim for case in own} >= {row.max_dim}, row
    assert len(set(map(str, table_cases(SWEPT[0])))) == len(table_cases(SWEPT[0]))


@pytest.mark.parametrize(
    "gpu, case",
    once(CAPABILITIES, [("bf16", 3, False), ("tf32", 3, True), ("fp16", 63, True)]),
    indirect=["gpu"],
    ids=str,
)
def test_chosen_rows_err_at_most_twice_as_plain_pytorch(gpu, monkeypatch, case):
    from table_cases import assert_within_twice_plain, table_cases

    gpu.unit_warps = 0
    cases = table_cases(f"sm_{gpu.capability}")
    (chosen,) = (c for c in cases if (c.kind, c.dim, c.row.cosine) == case)
    assert_within_twice_plain(chosen, monkeypatch)
