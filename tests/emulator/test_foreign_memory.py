"""NaN in memory that belongs to nobody never reaches a result of executed machine code."""

import numpy as np
import pytest
import torch

from mvar_kernels import Neighborhood
from mvar_kernels.backends import AttentionCall

from chosen_cases import once
from kernel_cases import draw_inputs
from machine_code_support import CAPABILITIES, MACHINE_CODE

pytestmark = MACHINE_CODE
NEIGHBORHOOD = Neighborhood.of_grids((6, 7), (9, 8), (4, 3))


def run(dtype, sea, cosine):
    """Return out, lse and gradients with `sea` around every row of the inputs and in fresh memory."""
    from mvar_kernels.backends.triton import launch

    from table_cases import islands

    query, key, value, factor, grad_out, grad_lse = draw_inputs(
        NEIGHBORHOOD, batch=1, heads=2, dim=37, dtype=dtype, cosine=cosine
    )
    query, key, value, grad_out = islands([query, key, value, grad_out], sea)
    real = torch.empty
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", lambda *args, **kwargs: real(*args, **kwargs).fill_(sea))
        call = AttentionCall(query, key, value, factor, NEIGHBORHOOD, 0.3)
        out, lse = launch.forward(call)
        grads = launch.backward(call, out, lse, grad_out, grad_lse)
    return [out, lse, *(grad for grad in grads if grad is not None)]


@pytest.mark.parametrize(
    "gpu, kind",
    once(CAPABILITIES, [(torch.bfloat16, True), (torch.float32, False)]),
    indirect=["gpu"],
    ids=str,
)
def test_nan_around_every_tensor_and_in_what_was_never_written(gpu, kind):
    """Equal bits with NaN and with zeros there. Shared memory that was never written is NaN either way, and
    reading it is a fault, which the runs would raise.
    """
    dtype, cosine = kind
    gpu.unit_warps = 0
    with_nan, with_zeros = run(dtype, float("nan"), cosine), run(dtype, 0.0, cosine)
    assert len(gpu.launches) == 2 * (3 + 4 * cosine)
    for nan, zero in zip(with_nan, with_zeros, strict=True):
        assert nan.isfinite().all() and torch.equal(nan, zero)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_fresh_shared_memory_is_nan_in_every_type(dtype):
    from emulated_gpu.shared_memory import Shared

    fresh = torch.from_numpy(Shared(256).words[1].astype(np.uint8)).view(dtype)
    assert fresh.isnan().all()
