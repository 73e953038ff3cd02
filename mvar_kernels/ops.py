"""The operators behind the public functions: schemas, fake kernels, gradients, FLOPs. No triton is imported
here.

`mvar_kernels::attention` and `mvar_kernels::attention_backward` carry the neighborhood as ints, so that they
trace, compile and export; symbols among the ints let one graph serve all grids. Autograd keeps q, k, v, out,
lse and logit_scale, nothing else.

An operator carries the backend's name. In graphs that may be "auto" (see `dispatch.resolve`): then both
operators decide, by device, type and neighborhood alone, so they decide alike.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from mvar_kernels import dispatch
from mvar_kernels.backends import AttentionCall
from mvar_kernels.backends.tiled import formulas
from mvar_kernels.pyramid import Neighborhood

_FORWARD = (
    "(Tensor query, Tensor key, Tensor value, Tensor? logit_scale, SymInt[] geometry, float scale,"
    " str backend) -> (Tensor, Tensor)"
)
_BACKWARD = (
    "(Tensor grad_out, Tensor? grad_lse, Tensor query, Tensor key, Tensor value, Tensor out, Tensor lse,"
    " Tensor? logit_scale, SymInt[] geometry, float scale, str backend) -> (Tensor, Tensor, Tensor, Tensor)"
)


def _call_of(operands: Iterable[Any], geometry: Sequence[int], scale: float) -> AttentionCall:
    """Return query, key, value and logit_scale as a call, whose neighborhood is decoded and checked."""
    query, key, value, logit_scale = operands
    return AttentionCall(query, key, value, logit_scale, Neighborhood.decode(geometry), scale)


def _empty_outputs(query: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    batch, length, heads, _ = query.shape
    out = torch.empty((batch, length, heads, value.shape[3]), dtype=query.dtype, device=query.device)
    precise = torch.promote_types(query.dtype, torch.float32)
    return out, torch.empty((batch, heads, length), dtype=precise, device=query.device)


def autocasts(device_type: str) -> bool:
    """Return whether autocast is on; some kinds of devices, such as meta, have none and cannot be asked."""
    known = device_type in ("cpu", "cuda") or torch.amp.is_autocast_available(device_type)
    return known and torch.is_autocast_enabled(device_type)


def _in_own_types(query: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Switch autocast off: `attention.py` has cast the inputs, and float32 accumulators must not be cast."""
    device_type = query.device.type
    return torch.autocast(device_type, enabled=False) if autocasts(device_type) else contextlib.nullcontext()


@torch.library.custom_op("mvar_kernels::attention", mutates_args=(), schema=_FORWARD)
def attention(query, key, value, logit_scale, geometry, scale, backend):  # type: ignore[no-untyped-def]
    """Return out (B, Lq, H, D) and lse (B, H, Lq), natural log."""
    if query.numel() == 0:
        return _empty_outputs(query, value)
    call = _call_of((query, key, value, logit_scale), geometry, scale)
    chosen = dispatch.choose(backend, call)
    with _in_own_types(query):
        return chosen.forward(call)


@attention.register_fake
def _(query, key, value, logit_scale, geometry, scale, backend):  # type: ignore[no-untyped-def]
    return _empty_outputs(query, value)


@torch.library.custom_op("mvar_kernels::attention_backward", mutates_args=(), schema=_BACKWARD)
def attention_backward(
    grad_out, grad_lse, query, key, value, out, lse, logit_scale, geometry, scale, backend
):  # type: ignore[no-untyped-def]
    """Return the gradients of q, k, v and logit_scale; the last is empty without logit_scale."""
    if query.numel() == 0:
        return tuple(
            torch.zeros_like(tensor) for tensor in (query, key, value, _factor_like(logit_scale, query))
        )
    call = _call_of((query, key, value, logit_scale), geometry, scale)
    with _in_own_types(query):
        dq, dk, dv, dfactor = dispatch.choose(backend, call).backward(call, out, lse, grad_out, grad_lse)
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


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, logit_scale, *arguments = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(query, key, value, *output, logit_scale)
    ctx.arguments = arguments


def _gradients(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    query, key, value, out, lse, logit_scale = ctx.saved_tensors
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    tensors = grad_out, grad_lse, query, key, value, out, lse, logit_scale
    *gradients, dfactor = _apply(attention_backward, _Backward, *tensors, *ctx.arguments)
    return *gradients, None if logit_scale is None else dfactor, None, None, None


def _keep_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    grad_out, grad_lse, query, key, value, _, _, logit_scale, *arguments = inputs
    ctx.save_for_backward(grad_out, grad_lse, query, key, value, logit_scale)
    ctx.arguments = arguments


def _second_gradients(ctx: Any, *directions: Tensor) -> tuple[Tensor | None, ...]:
    gradients, given = _derivable_gradients(ctx)
    with _in_own_types(directions[0]):
        results, pull, *_ = torch.func.vjp(gradients, *given.values())
        found = dict(zip(given, pull(directions[: len(results)])))
    return tuple(found.get(place) for place in range(11))


def _derivable_gradients(ctx: Any) -> tuple[Callable[..., tuple[Tensor, ...]], dict[int, Tensor]]:
    """Return the gradients as a function that PyTorch can differentiate, and what it is a function of.

    out and lse are functions of the operands, so they are no arguments. The others are given by their places
    among the arguments of `attention_backward`.
    """
    places = 0, 1, 2, 3, 4, 7
    given = {place: tensor for place, tensor in zip(places, ctx.saved_tensors) if tensor is not None}
    geometry, scale, _ = ctx.arguments

    def gradients(*tensors: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(given, tensors))
        (_, lse), pull, *_ = torch.func.vjp(
            lambda *operands: formulas.attend(_call_of((*operands, None)[:4], geometry, scale)),
            *(named[place] for place in places[2:] if place in named),
        )
        return pull((named[0], named.get(1, torch.zeros_like(lse))))

    return gradients, given


attention.register_autograd(_gradients, setup_context=_keep)
attention_backward.register_autograd(_second_gradients, setup_context=_keep_backward)


class _Forward(torch.autograd.Function):
    """`attention` for transforms of `torch.func` and for forward mode, which do not see into operators."""

    @staticmethod
    def forward(*inputs):  # type: ignore[no-untyped-def]
        return attention(*inputs)

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        _keep(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:4])

    backward = staticmethod(_gradients)

    @staticmethod
    def jvp(ctx, *directions):  # type: ignore[no-untyped-def]
        operands, (geometry, scale, _) = ctx.saved_tensors[:4], ctx.arguments
        along = map(_or_zeros, directions, operands)
        with _in_own_types(operands[0]):
            return formulas.tangents(_call_of(operands, geometry, scale), _call_of(along, geometry, scale))

    @staticmethod
    def vmap(info, in_dims, *inputs):  # type: ignore[no-untyped-def]
        return _mapped(_Forward, info, in_dims, inputs, (2, 2, 2, 0), (2, 1))


class _Backward(torch.autograd.Function):
    """`attention_backward` for the same."""

    @staticmethod
    def forward(*inputs):  # type: ignore[no-untyped-def]
        return attention_backward(*inputs)

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        _keep_backward(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:5], inputs[7])

    backward = staticmethod(_second_gradients)

    @staticmethod
    def jvp(ctx, *directions):  # type: ignore[no-untyped-def]
        gradients, given = _derivable_gradients(ctx)
        along = tuple(_or_zeros(directions[place], tensor) for place, tensor in given.items())

        # The gradient of this linear function is the tangent. Forward mode cannot be nested outside of
        # torch.func, reverse mode can.
        def pulled(*weights: Tensor) -> tuple[Tensor, ...]:
            return torch.func.vjp(gradients, *given.values())[1](weights)

        with _in_own_types(given[2]):
            weights = [torch.zeros_like(tensor) for place, tensor in given.items() if place > 1]
            found = torch.func.vjp(pulled, *weights)[1](along)
        return found if len(found) == 4 else (*found, given[2].new_empty(0))

    @staticmethod
    def vmap(info, in_dims, *inputs):  # type: ignore[no-untyped-def]
        return _mapped(_Backward, info, in_dims, inputs, (2, 1, 2, 2, 2, 2, 1, 0), (2, 2, 2, 0))


def _or_zeros(direction: Tensor | None, tensor: Tensor | None) -> Tensor | None:
    return torch.zeros_like(tensor) if direction is None and tensor is not None else direction


def _mapped(
    function: type[torch.autograd.Function],
    info: Any,
    in_dims: Sequence[int | None],
    inputs: Sequence[Any],
    heads: Sequence[int],
    out_heads: Sequence[int],
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    """Call a function with the dimension that `torch.func.vmap` maps as additional heads.

    Args:
        function: what to call.
        info: of the mapping.
        in_dims: where each input has that dimension.
        inputs: tensors, then other arguments.
        heads: where each tensor has its heads.
        out_heads: where each result has its heads.
    """
    folded = list(inputs)
    for place, (dim, axis) in enumerate(zip(in_dims, heads)):
        tensor = inputs[place]
        if tensor is not None:
            sizes = (*tensor.shape[:axis], info.batch_size, *tensor.shape[axis:])
            mapped = tensor.unsqueeze(axis).expand(sizes) if dim is None else tensor.movedim(dim, axis)
            folded[place] = mapped.flatten(axis, axis + 1)
    results = function.apply(*folded)
    out_dims = tuple(axis if result.numel() else None for axis, result in zip(out_heads, results))
    return tuple(
        result if axis is None else result.unflatten(axis, (info.batch_size, -1))
        for axis, result in zip(out_dims, results)
    ), out_dims


def attend(call: AttentionCall, backend: str) -> tuple[Tensor, Tensor]:
    """Return out and lse of `attention`, which may be derived in every way."""
    *tensors, neighborhood, scale = call
    return _apply(attention, _Forward, *tensors, neighborhood.encode(), scale, backend)


def _apply(operator: Any, function: type[torch.autograd.Function], *inputs: Any) -> Any:
    if not transformed():
        return operator(*inputs)
    if torch.compiler.is_compiling():
        # Without fullgraph=True the transform then runs as it is.
        raise NotImplementedError(
            "mvar_kernels: torch.compile cannot trace transforms of torch.func or forward mode through the "
            "attention: without fullgraph=True they run uncompiled, and are right"
        )
    return function.apply(*inputs)


def transformed() -> bool:
    """Return whether a transform of `torch.func` or forward mode is under way, which operators do not see."""
    # Compiled code is guarded by both.
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


# What torch.compiler.assume_constant_result does, which would import the compiler, a second or more.
transformed._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _pairs(query_shape: Sequence[int], geometry: Sequence[int]) -> int:
    batch, _, heads, _ = query_shape
    return batch * heads * Neighborhood.decode(geometry).attended_pairs()


@register_flop_formula(torch.ops.mvar_kernels.attention)
def _attention_flops(
    query_shape, key_shape, value_shape, logit_scale_shape, geometry, *args, **kwargs
) -> int:  # type: ignore[no-untyped-def]
    """Count two products over the attended pairs, 2 operations per multiply-add; padding does not count."""
    return 2 * (query_shape[3] + value_shape[3]) * _pairs(query_shape, geometry)


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
    return 2 * (3 * query_shape[3] + 2 * value_shape[3]) * _pairs(query_shape, geometry)
