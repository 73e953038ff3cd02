"""The operators behind the public functions: schemas, fake kernels, gradients, FLOPs. No triton is imported
here.

`mvar_kernels::attention` and `mvar_kernels::attention_backward` carry the neighborhood as ints, so that they
trace, compile and export. Autograd keeps q, k, v, out, lse and logit_scale, nothing else.

An operator carries the backend's name as it was asked for, "auto" too: a graph may be traced on one device
and run on another. Forward and backward both ask `dispatch.choose`, whose answer depends on device, type and
neighborhood alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from mvar_kernels import dispatch
from mvar_kernels.pyramid import Neighborhood

_FORWARD = (
    "(Tensor query, Tensor key, Tensor value, Tensor? logit_scale, int[] geometry, float scale, str backend)"
    " -> (Tensor, Tensor)"
)
_BACKWARD = (
    "(Tensor grad_out, Tensor? grad_lse, Tensor query, Tensor key, Tensor value, Tensor out, Tensor lse,"
    " Tensor? logit_scale, int[] geometry, float scale, str backend) -> (Tensor, Tensor, Tensor, Tensor)"
)


def _lse_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _empty_outputs(query: Tensor) -> tuple[Tensor, Tensor]:
    batch, length, heads, _ = query.shape
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    return out, torch.empty((batch, heads, length), dtype=_lse_dtype(query.dtype), device=query.device)


def _in_own_types(query: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Switch autocast off: `attention.py` has cast the inputs, and float32 accumulators must not be cast."""
    device_type = query.device.type
    return (
        torch.autocast(device_type, enabled=False)
        if torch.is_autocast_enabled(device_type)
        else contextlib.nullcontext()
    )


@torch.library.custom_op("mvar_kernels::attention", mutates_args=(), schema=_FORWARD)
def attention(query, key, value, logit_scale, geometry, scale, backend):  # type: ignore[no-untyped-def]
    """Return out (B, Lq, H, D) and lse (B, H, Lq), natural log."""
    if query.numel() == 0:
        return _empty_outputs(query)
    neighborhood = Neighborhood.decode(geometry)
    chosen = dispatch.choose(backend, query, key, value, logit_scale, neighborhood)
    with _in_own_types(query):
        return chosen.forward(query, key, value, logit_scale, neighborhood, scale)


@attention.register_fake
def _(query, key, value, logit_scale, geometry, scale, backend):  # type: ignore[no-untyped-def]
    return _empty_outputs(query)


@torch.library.custom_op("mvar_kernels::attention_backward", mutates_args=(), schema=_BACKWARD)
def attention_backward(
    grad_out, grad_lse, query, key, value, out, lse, logit_scale, geometry, scale, backend
):  # type: ignore[no-untyped-def]
    """Return the gradients of q, k, v and logit_scale; the last is empty without logit_scale."""
    if query.numel() == 0:
        return tuple(
            torch.zeros_like(tensor) for tensor in (query, key, value, _factor_like(logit_scale, query))
        )
    neighborhood = Neighborhood.decode(geometry)
    chosen = dispatch.choose(backend, query, key, value, logit_scale, neighborhood)
    with _in_own_types(query):
        dq, dk, dv, dfactor = chosen.backward(
            grad_out, grad_lse, query, key, value, out, lse, logit_scale, neighborhood, scale
        )
    return (
        dq.contiguous(),
        dk.contiguous(),
        dv.contiguous(),
        query.new_empty(0) if dfactor is None else dfactor,
    )


@attention_backward.register_fake
def _(grad_out, grad_lse, query, key, value, out, lse, logit_scale, geometry, scale, backend):  # type: ignore[no-untyped-def]
    dq, dk, dv = (
        torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device) for tensor in (query, key, value)
    )
    return dq, dk, dv, torch.empty_like(_factor_like(logit_scale, query))


def _factor_like(logit_scale: Tensor | None, query: Tensor) -> Tensor:
    return query.new_empty(0) if logit_scale is None else logit_scale


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, logit_scale, geometry, scale, backend = inputs
    out, lse = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(query, key, value, out, lse, logit_scale)
    ctx.arguments = geometry, scale, backend


def _backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    query, key, value, out, lse, logit_scale = ctx.saved_tensors
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    dq, dk, dv, dfactor = attention_backward(
        grad_out, grad_lse, query, key, value, out, lse, logit_scale, *ctx.arguments
    )
    return dq, dk, dv, None if logit_scale is None else dfactor, None, None, None


attention.register_autograd(_backward, setup_context=_setup_context)


def _pairs(query_shape: Sequence[int], geometry: Sequence[int]) -> int:
    batch, _, heads, dim = query_shape
    return batch * heads * dim * Neighborhood.decode(geometry).attended_pairs()


@register_flop_formula(torch.ops.mvar_kernels.attention)
def _attention_flops(
    query_shape, key_shape, value_shape, logit_scale_shape, geometry, *args, **kwargs
) -> int:  # type: ignore[no-untyped-def]
    """Count two products over the attended pairs, 2 operations per multiply-add; padding does not count."""
    return 4 * _pairs(query_shape, geometry)


@register_flop_formula(torch.ops.mvar_kernels.attention_backward)
def _backward_flops(  # type: ignore[no-untyped-def]
    grad_out_shape,
    grad_lse_shape,
    query_shape,
    key_shape,
    value_shape,
    out_shape_,
    lse_shape,
    logit_scale_shape,
    geometry,
    *args,
    **kwargs,
) -> int:
    """Count five products: the scores again, and one each for dP, dQ, dK and dV."""
    return 10 * _pairs(query_shape, geometry)
