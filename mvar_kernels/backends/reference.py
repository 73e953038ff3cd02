"""The oracle: a dense mask and nothing clever, on any device and in any float type, float64 included."""

from __future__ import annotations

import torch
from torch import Tensor

from mvar_kernels.backends import AttentionCall
from mvar_kernels.backends.dense import normalized, normalized_backward, repeated, summed


def can_run(call: AttentionCall) -> str | None:
    return None


def attend(call: AttentionCall) -> tuple[Tensor, Tensor]:
    """Return out (B, Lq, H, Dv) and lse (B, H, Lq), in at least float32; differentiable by autograd."""
    precise = call.precise
    q, k = normalized(call.query.to(precise), call.key.to(precise), call.logit_scale)
    k, v = (repeated(tensor, q.shape[2]) for tensor in (k, call.value.to(precise)))
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    logits = (q @ k.transpose(-2, -1)) * call.scale
    logits = logits.masked_fill(_hidden(call), float("-inf"))
    out = logits.softmax(dim=-1) @ v
    return out.transpose(1, 2).to(call.query.dtype).contiguous(), logits.logsumexp(dim=-1)


def _hidden(call: AttentionCall) -> Tensor:
    return ~call.neighborhood.mask().to(call.device)


def forward(call: AttentionCall) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return attend(call)


def backward(
    call: AttentionCall, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Compute the textbook gradient of a softmax, dense. Tests compare with autograd through `attend`."""
    query, key, value, logit_scale, _, scale = call
    precise = lse.dtype
    q, k = normalized(query.to(precise), key.to(precise), logit_scale)
    k, v = (repeated(tensor, q.shape[2]) for tensor in (k, value))
    q, k, v, o, do = (tensor.transpose(1, 2).to(precise) for tensor in (q, k, v, out, grad_out))
    logits = (q @ k.transpose(-2, -1)) * scale
    probability = torch.exp(logits - lse.unsqueeze(-1)).masked_fill(_hidden(call), 0)
    delta = (do * o).sum(dim=-1)
    if grad_lse is not None:
        delta = delta - grad_lse
    dlogits = probability * (do @ v.transpose(-2, -1) - delta.unsqueeze(-1)) * scale
    products = dlogits @ k, dlogits.transpose(-2, -1) @ q, probability.transpose(-2, -1) @ do
    dq, dk, dv = (gradient.transpose(1, 2) for gradient in products)
    dk, dv = summed(dk, key.shape[2]), summed(dv, key.shape[2])
    dq, dk, grad_factor = normalized_backward(dq, dk, query, key, logit_scale)
    return dq.to(query.dtype), dk.to(key.dtype), dv.to(value.dtype), grad_factor
