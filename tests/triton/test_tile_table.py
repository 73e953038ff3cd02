"""Every row of the tile table, and every variant of the kernels, where kernels are machine code.

On the emulated GPU (`make test-emulated`) and on real ones.
"""

import pytest
import torch

from mvar_kernels.backends.triton.tile_table import architecture_of

from table_cases import assert_within_twice_plain, table_cases
from triton_support import DEVICE, INTERPRETED


@pytest.mark.skipif(
    INTERPRETED, reason="the interpreter has no bfloat16, no TF32 and no variants of a kernel"
)
@pytest.mark.parametrize("case", table_cases(architecture_of(torch.device(DEVICE))), ids=str)
def test_row_errs_at_most_twice_as_plain_pytorch(case, monkeypatch):
    assert_within_twice_plain(case, monkeypatch)
