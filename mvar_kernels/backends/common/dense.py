"""Attention of a dense rectangle of scores, forward and backward from (q, k, v, out, lse): the piece that `sdpa` and `tiled` are made of.

On a CPU both directions are PyTorch's fused kernels, which never hold the scores; elsewhere plain products do. The fused kernels know no
gradient of lse, so that rare case takes the plain way everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor


def attend(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """(n, H, Lq, D), (n, H, Lk, D) twice, bias broadcastable to (n, H, Lq, Lk) or None -> (n, H, Lq, D), lse (n, H, Lq)."""
    if query.device.type == "cpu":
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, False, attn_mask=_expanded(bias, query, key), scale=scale
        )
        return out, lse
    scores = _scores(query, key, bias, scale)
    lse = scores.logsumexp(dim=-1)
    return (torch.exp(scores - lse.unsqueeze(-1)).to(value.dtype) @ value), lse


def attend_backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    bias: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, shaped as they are."""
    if grad_lse is None and query.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad_out,
            query,
            key,
            value,
            out,
            lse,
            0.0,
            False,
            attn_mask=_expanded(bias, query, key),
            scale=scale,
        )
    precise = lse.dtype
    q, k, v, o, do = (tensor.to(precise) for tensor in (query, key, value, out, grad_out))
    probability = torch.exp(_scores(query, key, bias, scale) - lse.unsqueeze(-1))
    delta = (do * o).sum(dim=-1)
    if grad_lse is not None:
        delta = delta - grad_lse
    dscores = probability * (do @ v.transpose(-2, -1) - delta.unsqueeze(-1)) * scale
    gradients = dscores @ k, dscores.transpose(-2, -1) @ q, probability.transpose(-2, -1) @ do
    return tuple(gradient.to(query.dtype) for gradient in gradients)  # type: ignore[return-value]


def _scores(query: Tensor, key: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    precise = torch.promote_types(query.dtype, torch.float32)
    scores = (query.to(precise) @ key.to(precise).transpose(-2, -1)) * scale
    return scores if bias is None else scores + bias.to(precise)


def _expanded(bias: Tensor | None, query: Tensor, key: Tensor) -> Tensor | None:
    """The fused CPU kernels take a 4-d bias of q's type or float32."""
    if bias is None:
        return None
    return bias.to(query.dtype).expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
