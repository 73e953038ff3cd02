"""Shared by tests/triton: where the kernels run, and the comparison of forward and backward with float64."""

import os

import torch

from kernel_cases import assert_as_in_float64, assert_close, draw_inputs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
# The interpreter computes with NumPy, which has no bfloat16.
HALF = [torch.float16] if INTERPRETED else [torch.float16, torch.bfloat16]
NAMES = ("dq", "dk", "dv", "dlogit_scale")


def assert_same(actual, expected, cosine, what):
    """Compare two runs of the same kernel: equal bits, except for compiled cosine attention.

    There kernels compiled for other strides sum the norms in another order, 1.6e-7 apart on sm_80 and sm_90.
    """
    if cosine and not INTERPRETED:
        size = max(1.0, expected.abs().max().item())
        assert_close(actual, expected, 4 * torch.finfo(actual.dtype).eps * size, what)
    else:
        assert torch.equal(actual, expected), what


def compare(neighborhood, scale=0.3, use_lse=True, **options):
    """Run forward and backward on drawn inputs and compare both with the oracle in float64."""
    inputs = draw_inputs(neighborhood, device=DEVICE, **options)
    return assert_as_in_float64("triton", inputs, neighborhood, scale, use_lse)
