"""Every option of a neighborhood as machine code; `make test-emulated` runs more of them."""

import pytest
import torch

from mvar_kernels import Neighborhood

from chosen_cases import once, some
from kernel_cases import assert_as_in_float64, assert_windows_in_slices, draw_inputs
from machine_code_support import MACHINE_CODE

pytestmark = MACHINE_CODE

CASES = {
    "1-D, strided": ((70,), {"stride": 2}),
    "2-D, dilated": ((7, 9), {"dilation": (2, 3)}),
    "3-D, causal": ((3, 4, 5), {"is_causal": (True, False, False)}),
    "3-D, all": ((4, 5, 6), {"stride": (2, 1, 3), "dilation": (1, 2, 2), "is_causal": (False, True, False)}),
}
# Widths of keys and of values, heads of queries and of keys.
SIZES = [(16, 64, 1, 1), (64, 16, 2, 1), (16, 16, 2, 1)]


@pytest.mark.parametrize("case", some(CASES, 2))
def test_windows_exactly(gpu, case):
    gpu.unit_warps = 0
    grid, options = CASES[case]
    assert_windows_in_slices(Neighborhood.of_grids(grid, grid, 3, **options), "triton", "cpu", str(options))


@pytest.mark.parametrize("sizes, cosine", once(SIZES, [False, True]))
def test_widths_of_values_and_shared_heads(gpu, sizes, cosine):
    gpu.unit_warps = 0
    dim, width, heads, key_heads = sizes
    neighborhood = Neighborhood.of_grids((5, 6, 7), (5, 6, 7), 3, dilation=(1, 2, 1))
    inputs = list(
        draw_inputs(
            neighborhood, batch=1, heads=heads, key_heads=key_heads, dim=dim, width=width, cosine=cosine,
            dtype=torch.bfloat16,
        )
    )  # fmt: skip
    if cosine:
        inputs[3][1::2] *= -1
    assert_as_in_float64("triton", inputs, neighborhood)
