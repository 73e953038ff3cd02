"""Shared by plain PyTorch backends: attention over a dense rectangle of scores with an additive bias; cosine
attention by dot products alone, with q' = logit_scale q / |q| and k' = k / |k|; and shared heads of keys.

On a CPU both directions of dense attention are PyTorch's fused kernels, which never hold the scores.
Elsewhere, and wherever lse has a gradient (which the fused kernels do not take), they are plain products.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NORM_EPS = 1e-12


def attend(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Attend to all keys, hidden where the bias is -inf.

    Args:
        query: (n, H, Lq, D).
        key: (n, Hkv, Lk, D), Hkv a divisor of H.
        value: (n, Hkv, Lk, Dv).
        bias: broadcastable to (n, Hkv, Lq, Lk), or None.
        scale: factor of the logits.

    Returns:
        out (n, H, Lq, Dv) and lse (n, H, Lq).
    """
    times = query.shape[1] // key.shape[1]
    if times > 1:  # one query head of each group at a time, so that no key is repeated in memory
        parts = [attend(query[:, i::times], key, value, bias, scale) for i in range(times)]
        out, lse = (torch.stack(part, dim=2).flatten(1, 2) for part in zip(*parts))
        return out, lse
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
    times = query.shape[1] // key.shape[1]
    if times > 1:
        parts = [
            attend_backward(
                grad_out[:, i::times],
                None if grad_lse is None else grad_lse[:, i::times],
                query[:, i::times],
                key,
                value,
                out[:, i::times],
                lse[:, i::times],
                bias,
                scale,
            )
            for i in range(times)
        ]
        dqs, dks, dvs = zip(*parts)
        # In a fixed order, and in lse's type, so that half-precision gradients are rounded once.
        dk, dv = (sum(part[1:], part[0].to(lse.dtype)) for part in (dks, dvs))
        return torch.stack(dqs, dim=2).flatten(1, 2), dk, dv
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


def normalized(query: Tensor, key: Tensor, logit_scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return q' and k' of (B, L, H, D) tensors, in their type; without `logit_scale` q and k themselves."""
    if logit_scale is None:
        return query, key
    unit_q, _ = _unit(query)
    unit_k, _ = _unit(key)
    return (unit_q * logit_scale.to(unit_q.dtype)[:, None]).to(query.dtype), unit_k.to(key.dtype)


def normalized_backward(
    grad_query: Tensor, grad_key: Tensor, query: Tensor, key: Tensor, logit_scale: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Turn the gradients of q' and k' into those of q, k and logit_scale (None without logit_scale)."""
    if logit_scale is None:
        return grad_query, grad_key, None
    unit_q, inverse_q = _unit(query)
    unit_k, inverse_k = _unit(key)
    grad_q = grad_query.to(unit_q.dtype)
    grad_factor = (grad_q * unit_q).sum(dim=(0, 1, 3)).to(logit_scale.dtype)
    dq = _unit_backward(grad_q * logit_scale.to(unit_q.dtype)[:, None], unit_q, inverse_q)
    dk = _unit_backward(grad_key.to(unit_k.dtype), unit_k, inverse_k)
    return dq.to(query.dtype), dk.to(key.dtype), grad_factor


def normalized_tangents(
    query: Tensor,
    key: Tensor,
    logit_scale: Tensor | None,
    dquery: Tensor,
    dkey: Tensor,
    dfactor: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the derivatives of q' and k' along dquery, dkey and dfactor; without `logit_scale` those two."""
    if logit_scale is None or dfactor is None:
        return dquery, dkey
    (unit_q, inverse_q), (unit_k, inverse_k) = _unit(query), _unit(key)
    # x / |x| has a symmetric Jacobian, so its tangent is computed like its gradient.
    turned = _unit_backward(dquery, unit_q, inverse_q)
    dq = turned * logit_scale.to(unit_q.dtype)[:, None] + unit_q * dfactor.to(unit_q.dtype)[:, None]
    return dq, _unit_backward(dkey, unit_k, inverse_k)


def _unit(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Return x / max(|x|, eps) and 1 / max(|x|, eps), in at least float32."""
    precise = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    inverse = 1 / torch.linalg.vector_norm(precise, dim=-1, keepdim=True).clamp_min(NORM_EPS)
    return precise * inverse, inverse


def _unit_backward(grad: Tensor, unit: Tensor, inverse: Tensor) -> Tensor:
    # Where the norm was clamped, x / eps is linear in x, so the direction of x is not projected out of the
    # gradient.
    along = (grad * unit).sum(dim=-1, keepdim=True) * (inverse < 1 / NORM_EPS)
    return (grad - unit * along) * inverse


def repeated(tensor: Tensor, heads: int) -> Tensor:
    """Return (B, L, H, D) of (B, L, H_kv, D): each head H / H_kv times, one after the other."""
    times = heads // tensor.shape[2]
    return tensor if times == 1 else tensor.repeat_interleave(times, dim=2)


def summed(grad: Tensor, heads: int) -> Tensor:
    """Return (B, L, H_kv, D), the gradient of what `repeated` was given, summed in a fixed order."""
    return grad if grad.shape[2] == heads else grad.unflatten(2, (heads, -1)).sum(dim=3)
