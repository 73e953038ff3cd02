"""The halves of a transformer block before and after attention, which keep little and recompute the rest.

    step                       kept for backward        recomputed in backward
    norm, qkv                  its input (2 n C)        the norm
    attention                  q, k, v, output (4 n C)  -
    proj, gate, residual       -                        all, one product of n C^2
    norm, fc1                  output of fc1 (4 n C)    the norm
    GELU, fc2                  output of fc2 (n C)      GELU
    in all                     11 n C, autograd: 24     3 % of a step's products

Counts are values of two bytes per image of n tokens and width C, with bfloat16 autocast; the input of a block
is float32. Backward repeats what forward did, so the values are the same bits.

Selective checkpointing of torch.utils.checkpoint is as fast and keeps as little (docs/measurements.md), but
saved_tensors_hooks, by which benchmarks count what training holds, do not see its cache.

Shapes: B images, n tokens, C width; gates, scales and shifts are (B, 1, C). Types follow `F.linear`: that of
autocast if it is on, else the weights'. Weights are cast for the call, so no copies of them are kept either.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mvar_kernels.ops import autocasts

NORM_EPS = 1e-6


def modulated_norm(hidden: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Apply AdaLN: LayerNorm without weights, times 1 + scale, plus shift."""
    return F.layer_norm(hidden, hidden.shape[-1:], eps=NORM_EPS) * (1 + scale) + shift


def modulated_linear(hidden: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply a linear layer to modulated_norm(hidden): (B, n, C) -> (B, n, F), keeping `hidden` alone."""
    if not torch.is_grad_enabled():
        return F.linear(modulated_norm(hidden, scale, shift).to(linear_dtype(weight)), weight, bias)
    return _ModulatedLinear.apply(hidden, scale, shift, weight, bias)


def after_attention(
    hidden: Tensor,
    attended: Tensor,
    gate1: Tensor,
    proj: nn.Linear,
    scale: Tensor,
    shift: Tensor,
    fc1: nn.Linear,
    fc2: nn.Linear,
    gate2: Tensor,
) -> Tensor:
    """Compute the rest of a block.

    It is h = hidden + gate1 proj(attended), then h + gate2 fc2(gelu(fc1(modulated_norm(h, scale, shift)))).

    Args:
        hidden: (B, n, C), the block's input.
        attended: (B, n, C), heads concatenated.
        gate1: Factor of the attention branch.
        proj: Projection after attention.
        scale: Of the second norm.
        shift: Of the second norm.
        fc1: First layer of the feed-forward network.
        fc2: Second layer.
        gate2: Factor of the feed-forward branch.
    """
    if not torch.is_grad_enabled():
        hidden = hidden + proj(attended) * gate1
        inner = fc1(modulated_norm(hidden, scale, shift).to(linear_dtype(fc1.weight)))
        return hidden + fc2(F.gelu(inner, approximate="tanh")) * gate2
    linears = (proj.weight, proj.bias, fc1.weight, fc1.bias, fc2.weight, fc2.bias)
    return _AfterAttention.apply(hidden, attended, gate1, scale, shift, gate2, *linears)


def linear_dtype(weight: Tensor) -> torch.dtype:
    """Return the type that a product with `weight` runs in; autocast leaves float64 alone."""
    kind = weight.device.type
    if weight.dtype != torch.float64 and autocasts(kind):
        return torch.get_autocast_dtype(kind)
    return weight.dtype


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    # Casts are explicit: autocast would cache its own without a gradient, as they happen inside a Function.
    return F.linear(inputs.to(dtype), weight.to(dtype), bias.to(dtype))


def _linear_backward(
    grad: Tensor, inputs: Tensor, weight: Tensor, bias: Tensor, needed: tuple[bool, ...]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the gradients of the inputs and, if needed, of weight and bias.

    `grad` and `inputs` have the type that the product ran in.
    """
    flat = grad.flatten(0, 1)
    return (
        grad @ weight.to(grad.dtype),
        (flat.t() @ inputs.flatten(0, 1)).to(weight.dtype) if needed[0] else None,
        flat.sum(0, dtype=_precise(grad)).to(bias.dtype) if needed[1] else None,
    )


def _precise(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _over_tokens(product: Tensor, like: Tensor) -> Tensor:
    """(B, n, C) summed to the (B, 1, C) of a gate, scale or shift."""
    return product.sum(1, keepdim=True, dtype=_precise(product)).to(like.dtype)


class _Norm:
    """Computes `modulated_norm` and keeps what its gradient needs."""

    def __init__(self, hidden: Tensor, scale: Tensor, shift: Tensor) -> None:
        self.hidden, self.scale, self.shift = hidden, scale, shift
        self.normed, self.mean, self.rstd = torch.native_layer_norm(
            hidden, hidden.shape[-1:], None, None, NORM_EPS
        )
        self.out = self.normed * (1 + scale) + shift

    def backward(self, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of hidden, scale and shift, given that of `out`."""
        grad_normed = (grad * (1 + self.scale)).to(self.normed.dtype)
        grad_hidden, _, _ = torch.ops.aten.native_layer_norm_backward(
            grad_normed,
            self.hidden,
            self.hidden.shape[-1:],
            self.mean,
            self.rstd,
            None,
            None,
            [True, False, False],
        )
        return grad_hidden, _over_tokens(grad * self.normed, self.scale), _over_tokens(grad, self.shift)


class _ModulatedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor
    ) -> Tensor:
        ctx.save_for_backward(hidden, scale, shift, weight, bias)
        ctx.dtype = linear_dtype(weight)
        return _linear(_Norm(hidden, scale, shift).out, weight, bias, ctx.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, scale, shift, weight, bias = ctx.saved_tensors
        norm = _Norm(hidden, scale, shift)
        grad_out, grad_weight, grad_bias = _linear_backward(
            grad, norm.out.to(ctx.dtype), weight, bias, ctx.needs_input_grad[3:]
        )
        return *norm.backward(grad_out), grad_weight, grad_bias


class _AfterAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, attended: Tensor,
        gate1: Tensor, scale: Tensor, shift: Tensor, gate2: Tensor,
        proj: Tensor, proj_bias: Tensor, fc1: Tensor, fc1_bias: Tensor, fc2: Tensor, fc2_bias: Tensor,
    ) -> Tensor:  # fmt: skip
        dtype = linear_dtype(fc1)
        middle = hidden + _linear(attended, proj, proj_bias, dtype) * gate1
        inner = _linear(_Norm(middle, scale, shift).out, fc1, fc1_bias, dtype)
        branch = _linear(F.gelu(inner, approximate="tanh"), fc2, fc2_bias, dtype)
        modulation = (gate1, scale, shift, gate2)
        ctx.save_for_backward(
            hidden, attended, inner, branch, *modulation, proj, proj_bias, fc1, fc1_bias, fc2, fc2_bias
        )
        ctx.dtype = dtype
        return middle + branch * gate2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, attended, inner, branch, *modulation_and_parameters = ctx.saved_tensors
        gate1, scale, shift, gate2, *parameters = modulation_and_parameters
        proj, proj_bias, fc1, fc1_bias, fc2, fc2_bias = parameters
        dtype, needed = ctx.dtype, ctx.needs_input_grad
        grad_gate2 = _over_tokens(grad * branch, gate2)
        grad_branch = (grad * gate2).to(dtype)
        active = F.gelu(inner, approximate="tanh")
        grad_active, grad_fc2, grad_fc2_bias = _linear_backward(
            grad_branch, active, fc2, fc2_bias, needed[10:12]
        )
        del active, grad_branch
        grad_inner = torch.ops.aten.gelu_backward(grad_active, inner, approximate="tanh")
        del grad_active
        projected = _linear(attended, proj, proj_bias, dtype)
        norm = _Norm(hidden + projected * gate1, scale, shift)
        grad_out, grad_fc1, grad_fc1_bias = _linear_backward(
            grad_inner, norm.out.to(dtype), fc1, fc1_bias, needed[8:10]
        )
        del grad_inner
        grad_middle, grad_scale, grad_shift = norm.backward(grad_out)
        grad_middle = grad + grad_middle
        grad_gate1 = _over_tokens(grad_middle * projected, gate1)
        grad_projected = (grad_middle * gate1).to(dtype)
        grad_attended, grad_proj, grad_proj_bias = _linear_backward(
            grad_projected, attended.to(dtype), proj, proj_bias, needed[6:8]
        )
        return (
            grad_middle.to(hidden.dtype), grad_attended.to(attended.dtype),
            grad_gate1, grad_scale, grad_shift, grad_gate2,
            grad_proj, grad_proj_bias, grad_fc1, grad_fc1_bias, grad_fc2, grad_fc2_bias,
        )  # fmt: skip
