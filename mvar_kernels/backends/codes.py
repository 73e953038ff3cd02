"""Codes from logits in plain PyTorch: on a CPU, and on devices that have no Triton kernel.

On a CPU the k largest logits come from NumPy, whose `partition` and `sort` are vectorized: 5 and 3
microseconds for 900 of 4,096, against 60 and 55 of torch's. Everything before the draw then works on k values
a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Logits that are worked on at a time on a CPU: 64 rows of 4,096 stay in the L2 cache. Elsewhere: 256 MiB.
_CACHED, _AT_A_TIME = 1 << 18, 1 << 26
_LARGEST_FLOAT = torch.finfo(torch.float32).max
# The least that top_p asks for, below the weight of the largest logit, 1: so one code is always kept.
_LEAST_MASS = 1e-30


def draw_codes(
    logits: Tensor,
    unconditional: Tensor | None,
    uniform: Tensor,
    guidance: float,
    top_k: int,
    top_p: float,
) -> Tensor:
    """Draw codes by inversion.

    Args:
        logits: (outer, inner, V), any strides.
        unconditional: like logits, or None.
        uniform: (outer * inner, m) float32.
        guidance: as for `sample_codes`.
        top_k: as for `sample_codes`.
        top_p: as for `sample_codes`.

    Returns:
        (outer * inner, m) int64.
    """
    outer, inner, vocabulary = logits.shape
    rows = max(1, (_CACHED if _is_cpu(logits) else _AT_A_TIME) // vocabulary)
    # Slices of both leading dimensions are views, whatever the strides.
    long, short = max(1, rows // inner), min(inner, rows)
    uniform = uniform.view(outer, inner, -1)
    codes = torch.empty(uniform.shape, dtype=torch.int64, device=uniform.device)
    for i in range(0, outer, long):
        for j in range(0, inner, short):
            part = slice(i, i + long), slice(j, j + short)
            x = logits[part].float()
            if unconditional is not None:
                x = (1 + guidance) * x - guidance * unconditional[part].float()
            numbers = uniform[part]
            drawn = _draw(x.reshape(-1, vocabulary).contiguous(), numbers.flatten(0, 1), top_k, top_p)
            codes[part] = drawn.view(numbers.shape)
    return codes.flatten(0, 1)


def _draw(x: Tensor, uniform: Tensor, top_k: int, top_p: float) -> Tensor:
    """Draw (N, m) codes for uniform (N, m) from guided float32 logits (N, V)."""
    x = x.nan_to_num(nan=-torch.inf, posinf=_LARGEST_FLOAT, neginf=-torch.inf)
    highest = x.amax(-1, keepdim=True).clamp_min(-_LARGEST_FLOAT)
    weights = (x - highest).exp_()
    if 0 < top_k < x.shape[-1] or 0 < top_p < 1:
        weights *= _allowed(x, highest, top_k or x.shape[-1], top_p)
    cumulative = weights.cumsum(-1)
    if not _is_cpu(x):
        cumulative = monotone(cumulative, weights)
    total = cumulative[:, -1:].contiguous()
    codes = torch.searchsorted(cumulative, uniform * total, right=True)
    # Where rounding puts the threshold on the very end of the sum, the last possible code is the right one.
    return torch.minimum(codes, torch.searchsorted(cumulative, total))


def monotone(cumulative: Tensor, weights: Tensor) -> Tensor:
    """Return cumulative sums (N, V) that never fall, and never rise where a weight is zero.

    A parallel sum may do both by rounding errors, and a code without weight would be drawn.
    """
    return torch.where(weights > 0, cumulative, 0).cummax(-1).values


def _allowed(x: Tensor, highest: Tensor, top_k: int, top_p: float) -> Tensor:
    """Return (N, V) bool, the codes that top_k and top_p leave."""
    count = min(top_k, x.shape[-1])
    largest = _largest(x, count)
    least = largest[:, -1:]
    allowed = x >= least
    if not 0 < top_p < 1:
        return allowed
    weights = (largest - highest).exp()
    cumulative = weights.cumsum(-1)
    # Logits that equal the k-th are kept too, and are not among the k largest.
    further = allowed.sum(-1, keepdim=True) - count
    wanted = (top_p * (cumulative[:, -1:] + further * weights[:, -1:])).clamp_min(_LEAST_MASS)
    at_edge = torch.searchsorted(cumulative, wanted).clamp_max(count - 1)
    edge, edge_weight = largest.gather(-1, at_edge), weights.gather(-1, at_edge)
    before = (largest > edge).sum(-1, keepdim=True)
    above = torch.nn.functional.pad(cumulative, (1, 0)).gather(-1, before)
    equal = (largest == edge).sum(-1, keepdim=True) + further * (edge == least)
    reached = above + (equal - 1) * edge_weight >= wanted
    # Elsewhere than on a CPU, asking whether a row is cut would wait for the device.
    if _is_cpu(x) and not reached.any():
        return x >= edge
    at_the_edge = x == edge
    rank = at_the_edge.cumsum(-1) - 1
    return (x > edge) | (at_the_edge & (above + rank * edge_weight < wanted))


def _largest(x: Tensor, count: int) -> Tensor:
    """Return the (N, count) largest values of each row, descending."""
    if not _is_cpu(x):
        return x.topk(count).values
    import numpy as np

    rows = x.numpy()
    if count < rows.shape[-1]:
        rows = np.partition(rows, rows.shape[-1] - count, axis=-1)[:, -count:]
    return torch.from_numpy(np.sort(rows, axis=-1)).flip(-1)


def _is_cpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"
