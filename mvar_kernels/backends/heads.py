"""Heads of keys and values that several heads of queries share, for backends that want one for each."""

from __future__ import annotations

from torch import Tensor


def repeated(tensor: Tensor, heads: int) -> Tensor:
    """Return (B, L, H, D) of (B, L, H_kv, D): each head H / H_kv times, one after the other."""
    times = heads // tensor.shape[2]
    return tensor if times == 1 else tensor.repeat_interleave(times, dim=2)


def summed(grad: Tensor, heads: int) -> Tensor:
    """Return (B, L, H_kv, D), the gradient of what `repeated` was given, summed in a fixed order."""
    return grad if grad.shape[2] == heads else grad.unflatten(2, (heads, -1)).sum(dim=3)
