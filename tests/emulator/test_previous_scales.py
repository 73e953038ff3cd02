"""Windows in two adjacent scales as machine code; `make test-emulated` runs more of them."""

import pytest
import torch

from mvar_kernels import Pyramid

from chosen_cases import once
from kernel_cases import assert_windows_in_slices, errors_beside_plain_pytorch
from machine_code_support import CAPABILITIES, MACHINE_CODE

pytestmark = MACHINE_CODE

ADJACENT = Pyramid((1, 2, 3, 4, 6, 8), 3, 3, 1)


@pytest.mark.parametrize("gpu, factor", once(CAPABILITIES, [None, 10.0]), indirect=["gpu"], ids=str)
def test_forward_and_backward_err_at_most_twice_as_plain_pytorch(gpu, factor):
    gpu.unit_warps = 0
    found = errors_beside_plain_pytorch(
        "triton", ADJACENT.neighborhood(), torch.bfloat16, factor, batch=1, heads=1
    )
    for name, error, plain, largest in found:
        size = largest if name != "dlogit_scale" else 2 * ADJACENT.length**0.5
        assert error <= 2 * plain + 2 * torch.finfo(torch.bfloat16).eps * size, name


@pytest.mark.parametrize(
    "gpu, case",
    once(CAPABILITIES, [((2, 5, 7), 3), (((3, 4), (6, 5)), (2, 3)), ((9, 6), 5)]),
    indirect=["gpu"],
    ids=str,
)
def test_windows_exactly(gpu, case):
    sides, kernel_size = case
    gpu.unit_warps = 0
    pyramid = Pyramid(sides, kernel_size, 0, len(sides) - 1)
    assert_windows_in_slices(pyramid.neighborhood(), "triton", "cpu", str(pyramid))
