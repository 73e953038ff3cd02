"""From tensors to launches: tables, configurations, grids.

This imports triton, so the package imports it only when it runs.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import triton
from torch import Tensor

from mvar_kernels.backends import AttentionCall
from mvar_kernels.backends.dense import summed
from mvar_kernels.backends.triton.kernel_backward import backward_dkdv, backward_dq
from mvar_kernels.backends.triton.kernel_forward import forward_kernel
from mvar_kernels.backends.triton.primitives import inverse_norms
from mvar_kernels.backends.triton.schedule import Tables, tables
from mvar_kernels.backends.triton.tile_config import Config, Row
from mvar_kernels.backends.triton.tile_table import architecture_of, tile_row
from mvar_kernels.pyramid import Neighborhood

# Triton decided when the kernels were defined, so a later change of TRITON_INTERPRET has no effect.
INTERPRETED = not isinstance(forward_kernel, triton.JITFunction)
NORM_ROWS = 32
# The mask is multiplied by the scale too, and hides nothing if that is negative, zero or tiny. Scales below
# this are multiplied into q instead.
_SMALLEST_SCALE = 1e-12


def on_device_of(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Make the tensor's device current, as that is where kernels are launched."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def _tables(neighborhood: Neighborhood, by: str, config: Config, query: Tensor) -> Tables:
    # The interpreter computes with NumPy, which has no bfloat16.
    dtype = torch.float32 if INTERPRETED else torch.bfloat16
    return tables(neighborhood, by, config.height, config.width, config.chunk, dtype, query.device)


def _row(call: AttentionCall) -> Row:
    wider = max(call.query.shape[-1], call.value.shape[-1])
    return tile_row(architecture_of(call.device), wider, call.query.element_size(), call.cosine)


def _constants(call: AttentionCall, *more: Tensor) -> dict[str, Any]:
    """Return what all three kernels are compiled for; `more` are tensors that they read besides operands."""
    query, key, value = call[:3]
    dim, width, heads = query.shape[3], value.shape[3], query.shape[2]
    # Offsets inside one batch element need 64 bits, of what is read or of what is written.
    wide = any(
        tensor.shape[1] * max(abs(tensor.stride(1)), heads * max(dim, width))
        + tensor.shape[3] * abs(tensor.stride(3))
        >= 2**31
        for tensor in (query, key, value, *more)
    )
    return {
        "D": dim,
        "BD": max(16, triton.next_power_of_2(dim)),
        "W": width,
        "BW": max(16, triton.next_power_of_2(width)),
        "GROUP": heads // key.shape[2],
        "WIDE": wide,
        "PRECISION": "tf32" if query.dtype == torch.float32 and _tf32_allowed() else "ieee",
        "CAST": INTERPRETED,
    }


def _tf32_allowed() -> bool:
    """Return whether torch's own products may use TF32 as well."""
    matmul = torch.backends.cuda.matmul
    # Once `fp32_precision` (torch 2.9 and newer) has been set, reading `allow_tf32` raises.
    return matmul.fp32_precision == "tf32" if hasattr(matmul, "fp32_precision") else matmul.allow_tf32


def _options(config: Config, schedule: Tables) -> dict[str, Any]:
    return {
        "BM": config.size,
        "BN": config.chunk,
        "E": schedule.num_features,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
    }


def _inverse_norms(tensor: Tensor, factor: Tensor, scale: float, signed: bool) -> Tensor:
    """Return 1 / max(|x|, 1e-12) of x (B, L, H, D) as (B, H, L); `signed`: with factor * scale's sign.

    There is one for each head of queries, which may share a head of keys but not the sign of its factor.
    """
    batch, length, own, dim = tensor.shape
    heads = len(factor)
    out = torch.empty((batch, heads, length), dtype=torch.float32, device=tensor.device)
    grid = (triton.cdiv(out.numel(), NORM_ROWS),)
    padded = max(16, triton.next_power_of_2(dim))
    inverse_norms[grid](
        tensor, out, factor, scale, out.numel(), heads, length, *tensor.stride(),
        SIGNED=signed, GROUP=heads // own, D=dim, BD=padded, BM=NORM_ROWS,
    )  # fmt: skip
    return out


def _inverses(
    query: Tensor, key: Tensor, logit_scale: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (1/|q|, 1/|k|, logit_scale); 1/|k| carries the sign of logit_scale * scale."""
    if logit_scale is None:
        # The kernels never read these pointers without cosine attention, so `query` is a placeholder.
        return query, query, query
    factor = logit_scale.contiguous()
    return _inverse_norms(query, factor, scale, False), _inverse_norms(key, factor, scale, True), factor


def _same_kv_stride(key: Tensor, value: Tensor) -> bool:
    """Return whether tokens of key and value lie equally far apart, as they do in a packed qkv."""
    return key.stride(1) == value.stride(1)


def _foldable(call: AttentionCall) -> bool:
    return not call.cosine and call.scale < _SMALLEST_SCALE


def _folded(call: AttentionCall) -> AttentionCall:
    return call._replace(query=call.query * call.scale, scale=1.0)


def forward(call: AttentionCall) -> tuple[Tensor, Tensor]:
    if _foldable(call):
        return forward(_folded(call))
    query, key, value, logit_scale, neighborhood, scale = call
    batch, heads, length = call.lse_shape
    config = _row(call).forward
    by_query = _tables(neighborhood, "query", config, query)
    out = torch.empty(call.out_shape, dtype=query.dtype, device=query.device)
    lse = torch.empty(call.lse_shape, dtype=torch.float32, device=query.device)
    with on_device_of(query):
        inverses = _inverses(query, key, logit_scale, scale)
        forward_kernel[(by_query.num_tiles * batch * heads,)](
            query, key, value, out, lse, *inverses,
            *by_query.pointers,
            by_query.num_tiles, heads, length, key.shape[1], scale,
            *query.stride(), *key.stride(), *value.stride(),
            COSINE=call.cosine, SAME_KV_STRIDE=_same_kv_stride(key, value),
            **_constants(call), **_options(config, by_query),
        )  # fmt: skip
    return out, lse


def backward(
    call: AttentionCall, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    if _foldable(call):
        dq, dk, dv, _ = backward(_folded(call), out, lse, grad_out, grad_lse)
        return dq * call.scale, dk, dv, None
    query, key, value, logit_scale, neighborhood, scale = call
    batch, heads, length = call.lse_shape
    row = _row(call)
    dq = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    # What heads of queries give to a head of keys that they share is summed afterwards, in a fixed order.
    own = key.shape[2]
    dk, dv = (
        torch.empty(
            (*tensor.shape[:2], heads, tensor.shape[3]),
            dtype=tensor.dtype if own == heads else torch.float32,
            device=tensor.device,
        )
        for tensor in (key, value)
    )
    delta, lse_base_2 = torch.empty_like(lse), torch.empty_like(lse)
    # `lse` is a placeholder for what the kernel does not touch.
    per_query = torch.empty_like(lse) if call.cosine else lse
    dlse = lse if grad_lse is None else grad_lse.contiguous()
    constants = {"COSINE": call.cosine, **_constants(call, grad_out)}
    shapes = heads, length, key.shape[1], scale
    strides = *query.stride(), *key.stride(), *value.stride(), *grad_out.stride()
    with on_device_of(query):
        inverses = _inverses(query, key, logit_scale, scale)
        by_query = _tables(neighborhood, "query", row.dq, query)
        backward_dq[(by_query.num_tiles * batch * heads,)](
            query, key, value, out.contiguous(), grad_out, dq, lse, dlse, delta, lse_base_2, *inverses,
            per_query,
            *by_query.pointers,
            by_query.num_tiles, *shapes, *strides,
            HAS_DLSE=grad_lse is not None, SAME_KV_STRIDE=_same_kv_stride(key, value),
            **constants, **_options(row.dq, by_query),
        )  # fmt: skip
        by_key = _tables(neighborhood, "key", row.dkdv, query)
        backward_dkdv[(by_key.num_tiles * batch * heads,)](
            query, key, value, grad_out, dk, dv, lse_base_2, delta, *inverses,
            *by_key.pointers,
            by_key.num_tiles, *shapes, *strides,
            **constants, **_options(row.dkdv, by_key),
        )  # fmt: skip
        grad_factor = None
        if logit_scale is not None:
            # torch sums in a fixed order, so the gradient of logit_scale is deterministic too.
            grad_factor = (per_query.sum(dim=(0, 2)) * scale).to(logit_scale.dtype)
    return dq, summed(dk, own).to(key.dtype), summed(dv, own).to(value.dtype), grad_factor
