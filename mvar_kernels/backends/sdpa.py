"""Dense attention of each block with its mask: what small grids on a CPU want. Scores of a block are computed whole."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from mvar_kernels.backends.common.cosine import normalized, normalized_backward
from mvar_kernels.backends.common.dense import attend, attend_backward
from mvar_kernels.pyramid import Block, Neighborhood

NAME = "sdpa"


def can_run(
    query: Tensor, key: Tensor, value: Tensor, logit_scale: Tensor | None, neighborhood: Neighborhood
) -> str | None:
    return None


@functools.lru_cache(maxsize=64)
@torch.inference_mode(
    False
)  # else what a call under inference mode made could not be saved for backward by a later one
def block_bias(block: Block, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """(num_queries, num_keys): 0 where attended, -inf elsewhere; None for a dense block."""
    if block.is_dense:
        return None
    mask = block.mask()
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, float("-inf")).to(device)


def slices(block: Block) -> tuple[slice, slice]:
    """A block's queries and keys in their packed sequences."""
    rows = slice(block.query_offset, block.query_offset + block.num_queries)
    return rows, slice(block.key_offset, block.key_offset + block.num_keys)


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
        rows, cols = slices(block)
        tensors = query[:, rows].transpose(1, 2), key[:, cols].transpose(1, 2), value[:, cols].transpose(1, 2)
        out, lse = attend(*tensors, block_bias(block, query.dtype, query.device), scale)
        outs.append(out.transpose(1, 2))
        lses.append(lse)
    if len(outs) == 1:
        return outs[0].contiguous(), lses[0].contiguous()
    return torch.cat(outs, dim=1), torch.cat(lses, dim=2)


def is_one_call(neighborhood: Neighborhood) -> bool:
    """Whether `one_call` can do it."""
    return len(neighborhood.blocks) == 1


def one_call(query: Tensor, key: Tensor, value: Tensor, neighborhood: Neighborhood, scale: float) -> Tensor:
    """PyTorch's own operator with its own autograd, of one block: for tiny grids, where our operators' Python would be most of the time."""
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
    # Blocks may share keys (VAR's mask); what they give is added in a fixed order, in lse's type, which is at least float32.
    dk, dv = (torch.zeros(key.shape, dtype=lse.dtype, device=key.device) for _ in range(2))
    for block in neighborhood.blocks:
        rows, cols = slices(block)
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
