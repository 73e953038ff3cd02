"""The oracle: a dense mask and nothing clever. Any device, any float type including float64, differentiable by plain autograd."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mvar_kernels.pyramid import Neighborhood

NAME = "reference"
NORM_EPS = 1e-12


def can_run(query: Tensor, key: Tensor, value: Tensor, logit_scale: Tensor | None, neighborhood: Neighborhood) -> str | None:
    return None


def attend(
    query: Tensor, key: Tensor, value: Tensor, logit_scale: Tensor | None, neighborhood: Neighborhood, scale: float
) -> tuple[Tensor, Tensor]:
    """(B, Lq, H, D), (B, Lk, H, D) twice -> (B, Lq, H, D) and lse (B, H, Lq); everything in at least float32."""
    precise = torch.promote_types(query.dtype, torch.float32)
    q, k, v = (tensor.transpose(1, 2).to(precise) for tensor in (query, key, value))
    if logit_scale is not None:
        q = F.normalize(q, dim=-1, eps=NORM_EPS) * logit_scale.to(precise)[:, None, None]
        k = F.normalize(k, dim=-1, eps=NORM_EPS)
    logits = (q @ k.transpose(-2, -1)) * scale
    logits = logits.masked_fill(~neighborhood.mask().to(query.device), float("-inf"))
    out = logits.softmax(dim=-1) @ v
    return out.transpose(1, 2).to(query.dtype).contiguous(), logits.logsumexp(dim=-1)


def forward(
    query: Tensor, key: Tensor, value: Tensor, logit_scale: Tensor | None, neighborhood: Neighborhood, scale: float
) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return attend(query, key, value, logit_scale, neighborhood, scale)


def backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    logit_scale: Tensor | None,
    neighborhood: Neighborhood,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Autograd of `attend`, so that no formula for the gradient is written down here."""
    inputs = [tensor.detach().requires_grad_() for tensor in (query, key, value, logit_scale) if tensor is not None]
    factor = inputs[3] if logit_scale is not None else None
    with torch.enable_grad():
        again = attend(*inputs[:3], factor, neighborhood, scale)
    pairs = [(again[0], grad_out)] + ([(again[1], grad_lse)] if grad_lse is not None else [])
    gradients = torch.autograd.grad([output for output, _ in pairs], inputs, [gradient for _, gradient in pairs])
    return gradients[0], gradients[1], gradients[2], gradients[3] if factor is not None else None
