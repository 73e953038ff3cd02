"""Rounding: half precision, cosines of short vectors and large factors, TF32 only where torch allows it."""

import subprocess
import sys

import pytest
import torch

from mvar_kernels import Neighborhood, Pyramid
from mvar_kernels.backends import AttentionCall
from mvar_kernels.dispatch import load

from chosen_cases import once, some
from kernel_cases import (
    PYRAMID_DIGITS,
    assert_close,
    assert_within_twice_plain_pytorch,
    draw_inputs,
    errors_beside_plain_pytorch,
    in_float64,
)
from triton_support import DEVICE, HALF, INTERPRETED, NAMES, compare


@pytest.mark.parametrize("dtype, cosine", once(HALF, [False, True]), ids=str)
def test_half_precision(dtype, cosine):
    compare(PYRAMID_DIGITS.neighborhood(), batch=1, dim=32, dtype=dtype, cosine=cosine, scale=0.2)


@pytest.mark.parametrize("dtype, factor", once([torch.float32, *HALF], [None, 10.0, 100.0]), ids=str)
def test_error_is_within_twice_that_of_plain_pytorch(dtype, factor):
    # NumPy, which multiplies in the interpreter, rounds a product by the shape of its operands, and so
    # differently in forward and backward: logits of 100 differ by a few 1e-5, and every weight with them.
    # float16 and a GPU hide or do not have this.
    rounding = 3e-5 if INTERPRETED and factor == 100.0 and dtype == torch.float32 else 0.0
    neighborhood = Pyramid((2, 5, 12), 5, 1).neighborhood()
    assert_within_twice_plain_pytorch("triton", neighborhood, dtype, factor, device=DEVICE, rounding=rounding)


def test_tf32_is_taken_from_either_setting_of_torch():
    """In a process of its own: torch refuses to have its two interfaces mixed."""
    code = """
import sys, torch
from mvar_kernels.backends.triton.launch import _tf32_allowed
assert not _tf32_allowed()
matmul = torch.backends.cuda.matmul
if sys.argv[1] == "new":
    matmul.fp32_precision = "tf32"
else:
    matmul.allow_tf32 = True
assert _tf32_allowed()
"""
    names = ["old", "new"] if hasattr(torch.backends.cuda.matmul, "fp32_precision") else ["old"]
    for name in names:
        subprocess.run([sys.executable, "-c", code, name], check=True)


def test_zero_vectors_have_finite_gradients():
    neighborhood = PYRAMID_DIGITS.neighborhood()
    query, key, value, logit_scale, grad_out, _ = draw_inputs(
        neighborhood, batch=1, cosine=True, device=DEVICE
    )
    key[:, 5] = 0
    query[:, 9] = 0
    backend = load("triton")
    call = AttentionCall(query, key, value, logit_scale, neighborhood, 1.0)
    out, lse = backend.forward(call)
    grads = backend.backward(call, out, lse, grad_out, None)
    assert all(tensor.isfinite().all() for tensor in (out, lse, *grads))


@pytest.mark.parametrize("short", some([0.0, 1e-13, 1e-9, 1e-6], 2))
def test_short_vectors_leave_cosine_attention_finite_and_right(short):
    """Mask penalties are divided by the norms too and overflow, also where a first chunk is all hidden."""
    neighborhood = Neighborhood.of_grids((24, 24), (24, 24), (7, 7))
    inputs = list(draw_inputs(neighborhood, batch=1, heads=1, dim=16, cosine=True, device=DEVICE))
    inputs[0][:, 15 * 24 + 8] *= short
    inputs[1][:, :200] *= short
    inputs[3] = torch.full_like(inputs[3], 10.0)
    query, key, value, logit_scale, grad_out, _ = inputs
    backend = load("triton")
    call = AttentionCall(query, key, value, logit_scale, neighborhood, 1.0)
    out, lse = backend.forward(call)
    grads = backend.backward(call, out, lse, grad_out, None)
    expected_out, expected_lse, expected = in_float64(inputs, neighborhood, 1.0, use_lse=False)
    assert_close(out, expected_out, 1e-5, "out")
    assert_close(lse, expected_lse, 1e-5, "lse")
    for name, actual, truth in zip(NAMES, grads, expected):
        # Gradients of short vectors are as large as their inverse norms: each row relative to its largest
        # value.
        size = (
            truth.abs().amax(-1, keepdim=True).clamp_min(1) if truth.dim() > 1 else truth.abs().clamp_min(1)
        )
        assert_close(actual.cpu().double() / size, truth / size, 1e-4, name)


@pytest.mark.parametrize("factor, dtype", once([1e3, 1e4, 1e5], [torch.float32, torch.float16]), ids=str)
def test_large_factors_cost_gradients_what_the_docstring_says(factor, dtype):
    """The output is as near as plain PyTorch's; a weight of backward is wrong by at most 2e-7 x factor."""
    neighborhood = Neighborhood.of_grids((12, 12), (12, 12), (5, 5))
    errors = errors_beside_plain_pytorch("triton", neighborhood, dtype, factor, 1, 1, device=DEVICE)
    (_, out, plain, size), *_, (name, dv, plain_dv, size_dv), _ = errors
    assert name == "dv"
    eps = torch.finfo(dtype).eps
    # Plain PyTorch in float16 cannot hold q times a factor of 1e5.
    plain, plain_dv = (0.0 if error != error else error for error in (plain, plain_dv))
    assert out <= 2 * plain + 2 * eps * size
    assert dv <= 2 * plain_dv + (2 * eps + 2e-7 * factor) * size_dv


@pytest.mark.parametrize("sign", some([-1, 1], 1))
def test_outputs_are_right_up_to_the_largest_factor(sign):
    neighborhood = Neighborhood.of_grids((12, 12), (12, 12), (5, 5))
    errors = errors_beside_plain_pytorch(
        "triton", neighborhood, torch.float32, sign * 9.9e7, 1, 1, device=DEVICE
    )
    _, out, plain, size = errors[0]
    assert out <= 2 * plain + 1e-6 * size
