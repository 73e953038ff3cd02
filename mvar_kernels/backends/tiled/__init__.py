"""O(N k) attention in plain PyTorch, forward and backward: for CPUs, and for any device without triton.

Queries are cut into tiles, 8 x 8 in two dimensions (`layout.py`). The keys of a tile are gathered as whole
(H x D) rows and attended to with PyTorch's fused kernel, with the windows as an additive mask (`attend.py`).
Dense blocks need no gathering. Nothing of size L x L exists.

A few tiles are a task (`tasks.py`), small enough for the cache of a core, with scratch buffers that are
reused (`workspace.py`). Threads take tasks as they come (`workers.py`).

dk and dv come out per tile and overlap between tiles. Each tile is added to its rectangle of keys, in an
order that depends on the grid alone (`turns.py`): no scatter-add, and the same bits on every run.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from mvar_kernels.backends import AttentionCall
from mvar_kernels.backends.cosine import normalized, normalized_backward
from mvar_kernels.backends.heads import repeated, summed
from mvar_kernels.backends.tiled import memory
from mvar_kernels.backends.tiled.attend import Gradients, Operands, backward_task, forward_task, scratch
from mvar_kernels.backends.tiled.layout import computed_scores
from mvar_kernels.backends.tiled.places import Places, in_places, in_tokens, places_of
from mvar_kernels.backends.tiled.tasks import (
    Cut,
    TokenTask,
    attention_tasks,
    cut_for,
    groups,
    token_tasks,
)
from mvar_kernels.backends.tiled.workers import Wait, run

__all__ = ["backward", "can_run", "computed_scores", "forward"]

# Elements of gathered keys in a task, tuned on two cores: 4 tiles forward and 2 backward at 64 x 64 with 8
# heads of 64.
_FORWARD_ELEMENTS = 7 << 16
_BACKWARD_ELEMENTS = 1 << 18


def can_run(call: AttentionCall) -> str | None:
    return None


def forward(call: AttentionCall) -> tuple[Tensor, Tensor]:
    places = places_of(call.neighborhood, call.device)
    if places is None:
        return _forward(call)
    out, lse = _forward(_call_in_places(call, places))
    return in_tokens(out, places.queries), lse[:, :, places.queries.argsort()]


def backward(
    call: AttentionCall, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    places = places_of(call.neighborhood, call.device)
    if places is None:
        return _backward(call, out, lse, grad_out, grad_lse)
    out, grad_out = (in_places(tensor, places.queries) for tensor in (out, grad_out))
    lse = lse[:, :, places.queries]
    grad_lse = None if grad_lse is None else grad_lse[:, :, places.queries]
    dq, dk, dv, dfactor = _backward(_call_in_places(call, places), out, lse, grad_out, grad_lse)
    return (
        in_tokens(dq, places.queries),
        in_tokens(dk, places.keys),
        in_tokens(dv, places.keys),
        dfactor,
    )


def _call_in_places(call: AttentionCall, places: Places) -> AttentionCall:
    return call._replace(
        query=in_places(call.query, places.queries),
        key=in_places(call.key, places.keys),
        value=in_places(call.value, places.keys),
    )


def _forward(call: AttentionCall) -> tuple[Tensor, Tensor]:
    query, key, value, logit_scale, neighborhood, scale = call
    cut = cut_for(query, neighborhood)
    query, key = _normalized(query, key, logit_scale, cut)
    key, value = (repeated(tensor, query.shape[2]) for tensor in (key, value))
    query, key, value = (_in_rows(tensor, cut) for tensor in (query, key, value))
    out = memory.empty(call.out_shape, query.dtype, query.device)
    lse = torch.empty(call.lse_shape, dtype=call.precise, device=query.device)
    attend_to = functools.partial(
        forward_task, whole=Operands(query, key, value, out, lse.transpose(1, 2), scale)
    )
    # No two queries share an output, so there is nothing to group.
    tasks = attention_tasks(neighborhood.by_queries(), query, cut, _FORWARD_ELEMENTS)
    run(tasks, attend_to, cut.threads, scratch.trim)
    return out, lse


def _backward(
    call: AttentionCall, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    query, key, value, logit_scale, neighborhood, scale = call
    cut = cut_for(query, neighborhood)
    q, k = _normalized(query, key, logit_scale, cut)
    dq = memory.empty(query.shape, query.dtype, query.device)
    # Tiles overlap, and blocks may share keys (VAR's mask). Their gradients are summed in a fixed order, and
    # in lse's type, which is at least float32.
    k, v = (repeated(tensor, query.shape[2]) for tensor in (k, value))
    dk, dv = (memory.empty(tensor.shape, lse.dtype, key.device) for tensor in (k, v))

    def clear(task: TokenTask, wait: Wait) -> None:
        dk[:, task.keys].zero_()
        dv[:, task.keys].zero_()

    run(token_tasks(query, key), clear, cut.threads)
    q, k, v, out, grad_out = (_in_rows(tensor, cut) for tensor in (q, k, v, out, grad_out))
    whole = Operands(q, k, v, out, lse.transpose(1, 2), scale)
    gradients = Gradients(grad_out, None if grad_lse is None else grad_lse.transpose(1, 2), dq, dk, dv)
    attend_to = functools.partial(backward_task, whole=whole, gradients=gradients)
    for group in groups(neighborhood):
        tasks = attention_tasks(group, query, cut, _BACKWARD_ELEMENTS)
        run(tasks, attend_to, cut.threads, scratch.trim)
    dk, dv = summed(dk, key.shape[2]), summed(dv, key.shape[2])
    grad_factor = _normalized_backward(dq, dk, query, key, logit_scale, cut)
    return dq, dk.to(key.dtype), dv.to(value.dtype), grad_factor


def _in_rows(tensor: Tensor, cut: Cut) -> Tensor:
    """Return a tensor (B, L, H, D) whose (H, D) rows are contiguous, as tasks gather them."""
    if tensor.stride(3) == 1 and tensor.stride(2) == tensor.shape[3]:
        return tensor
    copied = memory.empty(tensor.shape, tensor.dtype, tensor.device)

    def copy(task: TokenTask, wait: Wait) -> None:
        copied[:, task.queries].copy_(tensor[:, task.queries])

    run(token_tasks(tensor, tensor), copy, cut.threads)
    return copied


def _normalized(query: Tensor, key: Tensor, logit_scale: Tensor | None, cut: Cut) -> tuple[Tensor, Tensor]:
    """Do what `normalized` does, in tasks: PyTorch's own threads would keep spinning while ours work."""
    if logit_scale is None:
        return query, key
    q, k = (memory.empty(tensor.shape, tensor.dtype, tensor.device) for tensor in (query, key))

    def normalize(task: TokenTask, wait: Wait) -> None:
        unit_q, unit_k = normalized(query[:, task.queries], key[:, task.keys], logit_scale)
        q[:, task.queries].copy_(unit_q)
        k[:, task.keys].copy_(unit_k)

    run(token_tasks(query, key), normalize, cut.threads)
    return q, k


def _normalized_backward(
    dq: Tensor, dk: Tensor, query: Tensor, key: Tensor, logit_scale: Tensor | None, cut: Cut
) -> Tensor | None:
    """Turn the gradients of q' and k' into those of q and k, in place; return that of logit_scale."""
    if logit_scale is None:
        return None
    tasks = token_tasks(query, key)
    factors = torch.empty((len(tasks), *logit_scale.shape), dtype=logit_scale.dtype, device=query.device)

    def undo(task: TokenTask, wait: Wait) -> None:
        queries, keys = task.queries, task.keys
        grad_q, grad_k, factor = normalized_backward(
            dq[:, queries], dk[:, keys], query[:, queries], key[:, keys], logit_scale
        )
        dq[:, queries].copy_(grad_q)
        dk[:, keys].copy_(grad_k)
        assert factor is not None
        factors[task.number].copy_(factor)

    run(tasks, undo, cut.threads)
    return factors.sum(dim=0)
