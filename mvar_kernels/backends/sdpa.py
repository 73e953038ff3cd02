"""Dense attention of each grid of queries, with its windows as a mask: the fastest on a CPU for
small grids.

All scores of a block are computed, hidden ones too.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mvar_kernels import caches
from mvar_kernels.backends import AttentionCall
from mvar_kernels.backends.dense import (
    attend,
    attend_backward,
    normalized,
    normalized_backward,
)
from mvar_kernels.pyramid import Neighborhood, WindowBlock


def can_run(call: AttentionCall) -> str | None:
    return None


class _Dense(NamedTuple):
    """The blocks of the same queries, as one dense rectangle of scores.

    Attributes:
        blocks: they share one softmax.
        first_key: the first key that they see.
        num_keys: from there to the last key that they see.
    """

    blocks: tuple[WindowBlock, ...]
    first_key: int
    num_keys: int

    @property
    def queries(self) -> slice:
        return self.blocks[0].query_slice

    @property
    def keys(self) -> slice:
        return slice(self.first_key, self.first_key + self.num_keys)


@caches.remembered(256)
def _dense(neighborhood: Neighborhood) -> tuple[_Dense, ...]:
    found = []
    for blocks in neighborhood.by_queries():
        first = min(block.key_slice.start for block in blocks)
        found.append(_Dense(blocks, first, max(block.key_slice.stop for block in blocks) - first))
    return tuple(found)


def _bias(dense: _Dense, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """Return (queries, keys): 0 where attended, -inf elsewhere; None if all of them are attended."""
    if len(dense.blocks) == 1 and dense.blocks[0].is_dense:
        return None
    return _mask(dense, dtype, device)


# Two masks of 64 x 64 tokens in float32. Larger ones are made anew by each call.
@caches.tables(128 << 20)
def _mask(dense: _Dense, dtype: torch.dtype, device: torch.device) -> Tensor:
    bias = torch.full((dense.blocks[0].num_queries, dense.num_keys), float("-inf"), dtype=dtype)
    for block in dense.blocks:
        first = block.key_offset - dense.first_key
        bias[:, first : first + block.num_keys].masked_fill_(block.mask(), 0)
    return bias.to(device)


def forward(call: AttentionCall) -> tuple[Tensor, Tensor]:
    query, key, value, logit_scale, neighborhood, scale = call
    query, key = normalized(query, key, logit_scale)
    outs, lses = [], []
    for dense in _dense(neighborhood):
        rows, cols = dense.queries, dense.keys
        out, lse = attend(
            query[:, rows].transpose(1, 2),
            key[:, cols].transpose(1, 2),
            value[:, cols].transpose(1, 2),
            _bias(dense, query.dtype, query.device),
            scale,
        )
        outs.append(out.transpose(1, 2))
        lses.append(lse)
    if len(outs) == 1:
        return outs[0].contiguous(), lses[0].contiguous()
    return torch.cat(outs, dim=1), torch.cat(lses, dim=2)


def eager_forward(call: AttentionCall) -> Tensor | None:
    """Call PyTorch's own operator, with its own autograd; None unless all queries are one grid.

    Its fused kernel takes equal widths and as many heads of keys as of queries.
    """
    dense, *others = _dense(call.neighborhood)
    if others or call.query.shape[2:] != call.value.shape[2:]:
        return None
    seen = call.query, call.key[:, dense.keys], call.value[:, dense.keys]
    q, k, v = (tensor.transpose(1, 2) for tensor in seen)
    bias = _bias(dense, q.dtype, q.device)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=call.scale)
    if out.grad_fn is not None:
        out.grad_fn.register_hook(_guarded)
    return out.transpose(1, 2)


def _guarded(gradients: tuple[Tensor | None, ...], _: object) -> tuple[Tensor | None, ...] | None:
    """Let the second derivatives that PyTorch's operator lacks raise an error that says what has them."""
    if not torch.is_grad_enabled():  # no create_graph=True
        return None
    return tuple(None if gradient is None else _Once.apply(gradient) for gradient in gradients)


class _Once(torch.autograd.Function):
    """The identity, but not for second derivatives."""

    @staticmethod
    def forward(ctx, gradient):  # type: ignore[no-untyped-def]
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx, direction):  # type: ignore[no-untyped-def]
        raise NotImplementedError(
            "mvar_kernels: attention by backend='auto' has no second derivatives on small grids, where it is "
            "PyTorch's own operator: name the backend, such as backend='sdpa', to get them at any size"
        )


def backward(
    call: AttentionCall, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    query, key, value, logit_scale, neighborhood, scale = call
    q, k = normalized(query, key, logit_scale)
    dq = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    # Blocks may share keys (VAR's mask). Their gradients are summed in a fixed order, so results are
    # deterministic, and in lse's type (at least float32), so that half-precision keys seen by many scales are
    # rounded once.
    dk, dv = (torch.zeros(tensor.shape, dtype=lse.dtype, device=key.device) for tensor in (k, value))
    for dense in _dense(neighborhood):
        rows, cols = dense.queries, dense.keys
        block_dq, block_dk, block_dv = attend_backward(
            grad_out[:, rows].transpose(1, 2),
            None if grad_lse is None else grad_lse[:, :, rows],
            q[:, rows].transpose(1, 2),
            k[:, cols].transpose(1, 2),
            value[:, cols].transpose(1, 2),
            out[:, rows].transpose(1, 2),
            lse[:, :, rows],
            _bias(dense, query.dtype, query.device),
            scale,
        )
        dq[:, rows] = block_dq.transpose(1, 2)
        dk[:, cols] += block_dk.transpose(1, 2)
        dv[:, cols] += block_dv.transpose(1, 2)
    dq, dk, grad_factor = normalized_backward(dq, dk, query, key, logit_scale)
    return dq, dk.to(key.dtype), dv.to(value.dtype), grad_factor
