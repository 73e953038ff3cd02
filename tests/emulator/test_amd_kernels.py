"""Our kernels on the emulated AMD GPU; `make test-emulated` sweeps every row of the tile table there."""

import pytest

from machine_code_support import MACHINE_CODE

pytestmark = MACHINE_CODE


@pytest.mark.parametrize("kind, dim, cosine", [("bf16", 3, True), ("fp32", 17, False)])
def test_chosen_rows_err_at_most_twice_as_plain_pytorch(monkeypatch, kind, dim, cosine):
    from emulated_gpu import mvar_backend

    from table_cases import assert_within_twice_plain, table_cases

    cases = table_cases("gfx942")
    (chosen,) = (c for c in cases if (c.kind, c.dim, c.row.cosine) == (kind, dim, cosine))
    with mvar_backend.emulated("gfx942"):
        assert_within_twice_plain(chosen, monkeypatch)
