"""Dense attention of each block, with its windows as a mask: the fastest on a CPU while grids are small.

All scores of a block are computed, hidden ones too.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from mvar_kernels.backends.common.cosine import normalized, normalized_backward
from mvar_kernels.backends.common.dense import attend, attend_backward
from mvar_kernels.pyramid import Neighborhood, WindowBlock


def can_run(
    query: Tensor, key: Tensor, value: Tensor, logit_scale: Tensor | None, neighborhood: Neighborhood
) -> str | None:
    return None


# A bias that was created under inference mode could not be saved for backward by a later call outside of it.
@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def block_bias(block: WindowBlock, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """Return (num_queries, num_keys): 0 where attended, -inf elsewhere; None for a dense block."""
    if block.is_dense:
        return None
    mask = block.mask()
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, float("-inf")).to(device)


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    logit_scale: Tensor | None,
    neighborhood: Neighborhood,
    scale: float,
) -> tuple[Tensor, Tensor]:
    query, key = normalized(query, key, logit_scale)
    outs, lses = [], []
    for block in neighborhood.blocks:
        rows, cols = block.query_slice, block.key_slice
        out, lse = attend(
            query[:, rows].transpose(1, 2),
            key[:, cols].transpose(1, 2),
            value[:, cols].transpose(1, 2),
            block_bias(block, query.dtype, query.device),
            scale,
        )
        outs.append(out.transpose(1, 2))
        lses.append(lse)
    if len(outs) == 1:
        return outs[0].contiguous(), lses[0].contiguous()
    return torch.cat(outs, dim=1), torch.cat(lses, dim=2)


def eager_forward(
    query: Tensor, key: Tensor, value: Tensor, neighborhood: Neighborhood, scale: float
) -> Tensor | None:
    """Call PyTorch's own operator, with its own autograd; None unless the neighborhood is one block."""
    if len(neighborhood.blocks) != 1:
        return None
    bias = block_bias(neighborhood.blocks[0], query.dtype, query.device)
    out = F.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=bias, scale=scale
    )
    return out.transpose(1, 2)


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
    q, k = normalized(query, key, logit_scale)
    dq = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    # Blocks may share keys (VAR's mask). Their gradients are summed in a fixed order, so results are
    # deterministic, and in lse's type (at least float32), so that half-precision keys seen by many scales are
    # rounded once.
    dk, dv = (torch.zeros(key.shape, dtype=lse.dtype, device=key.device) for _ in range(2))
    for block in neighborhood.blocks:
        rows, cols = block.query_slice, block.key_slice
        block_dq, block_dk, block_dv = attend_backward(
            grad_out[:, rows].transpose(1, 2),
            None if grad_lse is None else grad_lse[:, :, rows],
            q[:, rows].transpose(1, 2),
            k[:, cols].transpose(1, 2),
            value[:, cols].transpose(1, 2),
            out[:, rows].transpose(1, 2),
            lse[:, :, rows],
            block_bias(block, query.dtype, query.device),
            scale,
        )
        dq[:, rows] = block_dq.transpose(1, 2)
        dk[:, cols] += block_dk.transpose(1, 2)
        dv[:, cols] += block_dv.transpose(1, 2)
    dq, dk, grad_factor = normalized_backward(dq, dk, query, key, logit_scale)
    return dq, dk.to(key.dtype), dv.to(value.dtype), grad_factor
