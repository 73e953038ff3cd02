"""Cosine attention for backends that know only dot products: q' = logit_scale q / |q| and k' = k / |k|."""

from __future__ import annotations

import torch
from torch import Tensor

NORM_EPS = 1e-12


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
