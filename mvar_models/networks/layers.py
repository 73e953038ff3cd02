"""Steps that blocks share, and how to tell whether a layer is still what the network made it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as _modules
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from mvar_kernels.ops import autocasts

_HOOKS = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
# 0.5 x (1 + tanh(u)) = x sigmoid(2 u) with u = sqrt(2 / pi) (x + 0.044715 x^3).
_LINEAR = 2 * math.sqrt(2 / math.pi)
_CUBIC = 0.044715 * _LINEAR
# Values at a time, whose float32 copies stay in a cache.
_AT_A_TIME = 1 << 18
_PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
_ATTENTION = torch.ops.mvar_kernels.attention.default


def recomputed(block: nn.Module, everything: bool = False) -> Callable[..., Tensor]:
    """Return a call of the block whose backward, if gradients are recorded, recomputes part of it.

    Kept are the block's input, attention, and products with weights that are not square: qkv and the layers
    of the feed-forward network. Norms, activations and `proj` are recomputed, which gives the same bits.

    Args:
        block: Called with (B, n, C) and other arguments.
        everything: Keep the block's input alone.
    """

    def run(hidden: Tensor, *inputs: Any) -> Tensor:
        # Casts of weights are used once here, and autocast would keep them until it ends.
        kind = hidden.device.type
        with torch.autocast(kind, cache_enabled=False) if autocasts(kind) else contextlib.nullcontext():
            if everything:
                return checkpoint(block, hidden, *inputs, use_reentrant=False)
            if torch.compiler.is_compiling():
                return block(hidden, *inputs)  # the compiler decides itself what to recompute
            return checkpoint(block, hidden, *inputs, use_reentrant=False, context_fn=_selective)

    return run if torch.is_grad_enabled() else block


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = operator is _ATTENTION or (operator in _PRODUCTS and args[-1].shape[0] != args[-1].shape[1])
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


_selective = partial(create_selective_checkpoint_contexts, _policy)


def multiply_add(values: Tensor, factor: Tensor, offset: Tensor, overwrite: bool = False) -> Tensor:
    """Return values * factor + offset.

    Args:
        values: Any shape.
        factor: Of a shape that expands to that of `values`.
        offset: Likewise.
        overwrite: Nobody else holds `values`, so they may be overwritten where no gradients are recorded.
    """
    # On a CPU a fused multiply-add would round otherwise than the plain loop, whose bits are promised.
    if values.device.type != "cpu" and values.dtype == factor.dtype == offset.dtype:
        return torch.addcmul(offset, values, factor)
    if torch.is_grad_enabled():
        return values * factor + offset
    # Fresh memory costs a CPU more than the arithmetic. Compiled graphs cannot hold `torch.result_type`.
    overwrite = overwrite and torch.promote_types(values.dtype, factor.dtype) == values.dtype
    product = values.mul_(factor) if overwrite else values * factor
    fits = torch.promote_types(product.dtype, offset.dtype) == product.dtype
    return product.add_(offset) if fits else product + offset


def gelu(inner: Tensor, overwrite: bool = False) -> Tensor:
    """Apply GELU (tanh approximation); see `multiply_add` for `overwrite`."""
    half = inner.dtype in (torch.bfloat16, torch.float16)
    if torch.is_grad_enabled() or inner.device.type != "cpu" or not half:
        return F.gelu(inner, approximate="tanh")
    # PyTorch's kernel takes four times as long there (docs/measurements.md).
    out = inner if overwrite else torch.empty_like(inner)
    for values, results in zip(inner.flatten().split(_AT_A_TIME), out.flatten().split(_AT_A_TIME)):
        precise = values.float()
        exponent = precise.square().mul_(_CUBIC).add_(_LINEAR).mul_(precise)
        results.copy_(exponent.sigmoid_().mul_(precise))
    return out


def biased(layer: nn.Module, inputs: Tensor, bias: Tensor) -> Tensor:
    """Apply a linear layer without a bias and add one: (..., C) and (F,) -> (..., F)."""
    # Inside the product if nothing else stands there, which saves a pass over the output.
    if is_plain(layer):
        weight: Tensor = layer.weight  # type: ignore[assignment]
        return F.linear(inputs.to(weight.dtype), weight, bias.to(weight.dtype))
    out = layer(inputs.to(input_dtype(layer)))
    return out + bias.to(out.dtype)


def input_dtype(layer: nn.Module) -> torch.dtype:
    """Return the type of a layer's inputs: that of its first floating-point parameter, else float32.

    Quantized layers hold their weights otherwise and take float32.
    """
    for parameter in layer.parameters():  # No `next`, which PyTorch 2.6 does not compile.
        if parameter.is_floating_point():
            return parameter.dtype
    return torch.float32


def is_plain(layer: nn.Module, kind: type[nn.Module] = nn.Linear) -> bool:
    """Return whether this is an untouched layer whose weight is an ordinary tensor."""
    return is_untouched(layer, kind) and not is_traceable_wrapper_subclass(layer.weight)  # type: ignore[arg-type]


def is_untouched(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether a call of the module is `kind.forward`: same type, no hook, no other forward."""
    return type(module) is kind and not is_hooked(module)


def is_hooked(module: nn.Module) -> bool:
    """Return whether a call of the module runs more than the forward of its class."""
    return bool(
        "forward" in module.__dict__
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or (
            not torch.compiler.is_compiling()
            and any(getattr(_modules, f"_global_{name}", None) for name in _HOOKS)
        )
    )


def is_known(module: nn.Module) -> bool:
    """Return whether a module is torch.nn's or ours, which compute from tensors and simple attributes."""
    return f"{type(module).__module__}.".startswith(("torch.nn.", "mvar_models."))
