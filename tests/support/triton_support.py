"""Shared by tests/triton: where the kernels run, and the comparison of forward and backward with float64."""

import os

import torch

from mvar_kernels.backends import AttentionCall
from mvar_kernels.dispatch import load

from kernel_cases import assert_close, draw_inputs, in_float64

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
# The interpreter computes with NumPy, which has no bfloat16.
HALF = [torch.float16] if INTERPRETED else [torch.float16, torch.bfloat16]
# Relative to the largest magnitude of a result. Both sides start from the same rounded inputs.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
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
    query, key, value, logit_scale, grad_out, grad_lse = inputs
    backend = load("triton")
    call = AttentionCall(query, key, value, logit_scale, neighborhood, scale)
    assert backend.can_run(call) is None
    out, lse = backend.forward(call)
    grads = backend.backward(call, out, lse, grad_out, grad_lse if use_lse else None)
    expected_out, expected_lse, expected = in_float64(inputs, neighborhood, scale, use_lse)
    results = [("out", out, expected_out), ("lse", lse, expected_lse), *zip(NAMES, grads, expected)]
    for name, actual, truth in results:
        if truth is not None:
            tolerance = TOLERANCE[query.dtype] * max(1.0, truth.abs().max().item())
            assert_close(actual, truth, tolerance, f"{name} of {neighborhood}")
    return out, lse, grads
