"""Fused kernels, one launch each for a whole pyramid: forward, dq, and dk, dv. Importing this imports no
triton.

What may leak: as in dense masked attention, NaN or infinity in a key or value reaches the other queries of
its tile (0 x NaN is NaN), and small scales share tiles. Memory outside the tensors is never read, and finite
values of one scale never change a bit of another.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from mvar_kernels.backends import AttentionCall

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_LEAST_CAPABILITY = (8, 0)


def can_run(call: AttentionCall) -> str | None:
    query = call.query
    if importlib.util.find_spec("triton") is None:
        return (
            "triton is not installed (CUDA and ROCm builds of torch bring it; elsewhere: pip install triton)"
        )
    if query.dtype not in _DTYPES:
        return f"its kernels take float16, bfloat16 and float32, not {query.dtype}"
    if query.device.type not in ("cuda", "cpu"):
        return f"there are no kernels for {query.device.type} tensors"
    if query.device.type == "cpu" and not _interpreted():
        return "CPU tensors need TRITON_INTERPRET=1 in the environment before the first import"
    if (
        query.is_cuda
        and torch.version.hip is None
        and torch.cuda.get_device_capability(query.device) < _LEAST_CAPABILITY
    ):
        name = torch.cuda.get_device_name(query.device)
        return f"the mask is a bfloat16 product, which {name} lacks (8.0 and newer have it)"
    from mvar_kernels.backends.triton.tile_parts import unsupported

    return unsupported(call.neighborhood)


def _interpreted() -> bool:
    from mvar_kernels.backends.triton import launch

    return launch.INTERPRETED


# No module of this package may be called "forward" or "backward": importing it would replace the functions
# below.
def forward(call: AttentionCall) -> tuple[Tensor, Tensor]:
    from mvar_kernels.backends.triton import launch

    return launch.forward(call)


def backward(
    call: AttentionCall, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    from mvar_kernels.backends.triton import launch

    return launch.backward(call, out, lse, grad_out, grad_lse)
