"""Attention over a dense rectangle of scores, forward and backward, with an additive bias: what `sdpa` and
`tiled` share.

On a CPU both directions are PyTorch's fused kernels, which never hold the scores. Elsewhere, and wherever lse
has a gradient (which the fused kernels do not take), they are plain products.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Attend to all keys, hidden where the bias is -inf.

    Args:
        query: (n, H, Lq, D).
        key: (n, H, Lk, D).
        value: (n, H, Lk, Dv).
        bias: broadcastable to (n, H, Lq, Lk), or None.
        scale: factor of the logits.

    Returns:
        out (n, H, Lq, Dv) and lse (n, H, Lq).
    """
    if query.device.type == "cpu":
        width = value.shape[-1]
        query, key, value = _of_one_width(query, key, value)
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, False, attn_mask=_expanded(bias, query, key), scale=scale
        )
        return out[..., :width], lse
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
    """Return the gradients of query, key and value, shaped like them."""
    if grad_lse is None and query.device.type == "cpu":
        widths = query.shape[-1], key.shape[-1], value.shape[-1]
        gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *_of_one_width(grad_out, query, key, value, out),
            lse,
            0.0,
            False,
            attn_mask=_expanded(bias, query, key),
            scale=scale,
        )
        return tuple(gradient[..., :width] for gradient, width in zip(gradients, widths))
    precise = lse.dtype
    q, k, v, o, do = (tensor.to(precise) for tensor in (query, key, value, out, grad_out))
    probability = torch.exp(_scores(query, key, bias, scale) - lse.unsqueeze(-1))
    delta = (do * o).sum(dim=-1)
    if grad_lse is not None:
        delta = delta - grad_lse
    dscores = probability * (do @ v.transpose(-2, -1) - delta.unsqueeze(-1)) * scale
    dq, dk, dv = dscores @ k, dscores.transpose(-2, -1) @ q, probability.transpose(-2, -1) @ do
    return dq.to(query.dtype), dk.to(query.dtype), dv.to(query.dtype)


def _of_one_width(*tensors: Tensor) -> list[Tensor]:
    """Pad the last dimension with zeros, which change no product: the fused CPU kernels take one width."""
    width = max(tensor.shape[-1] for tensor in tensors)
    return [
        tensor if tensor.shape[-1] == width else F.pad(tensor, (0, width - tensor.shape[-1]))
        for tensor in tensors
    ]


def _scores(query: Tensor, key: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    precise = torch.promote_types(query.dtype, torch.float32)
    scores = (query.to(precise) @ key.to(precise).transpose(-2, -1)) * scale
    return scores if bias is None else scores + bias.to(precise)


def _expanded(bias: Tensor | None, query: Tensor, key: Tensor) -> Tensor | None:
    """Give the bias the four dimensions and the type that the fused CPU kernels take."""
    if bias is None:
        return None
    return bias.to(query.dtype).expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
