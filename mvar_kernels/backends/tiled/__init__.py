"""O(N k) attention in plain PyTorch, forward and backward: for CPUs, and for any device without triton.

Queries are cut into tiles, 8 x 8 in two dimensions (`layout.py`). The keys of a tile are gathered as whole
(H x D) rows and attended to with PyTorch's fused kernel, with the windows as an additive mask (`attend.py`).
Dense blocks need no gathering. Nothing of size L x L exists.

A few tiles are a task (`tasks.py`), small enough for the cache of a core, with scratch buffers that are
reused (`workspace.py`). Threads take tasks as they come (`workers.py`).

dk and dv come out per tile and overlap between tiles. Each tile is added to its rectangle of keys, in the
order of the tasks: no scatter-add, and the same bits on any number of cores.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from mvar_kernels.backends import AttentionCall
from mvar_kernels.backends.dense import normalized, normalized_backward
from mvar_kernels.backends.tiled.attend import Gradients, Operands, backward_task, forward_task, scratch
from mvar_kernels.backends.tiled.layout import computed_scores
from mvar_kernels.backends.tiled.places import Places, in_places, in_tokens, places_of
from mvar_kernels.backends.tiled.tasks import (
    Partition,
    TokenTask,
    attention_tasks,
    partition_of,
    token_tasks,
)
from mvar_kernels.backends.tiled.workers import Addition, run
from mvar_kernels.backends.tiled.workspace import empty

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
    partition, precision = partition_of(query, neighborhood), _precision(call)
    query, key = _normalized(query, key, logit_scale, precision, partition)
    query, key, value = (_in_rows(tensor, precision, partition) for tensor in (query, key, value))
    out = empty(call.out_shape, precision, query.device)
    lse = torch.empty(call.lse_shape, dtype=call.precise, device=query.device)
    attend_to = functools.partial(
        forward_task, whole=Operands(query, key, value, out, lse.transpose(1, 2), scale)
    )
    tasks = attention_tasks(neighborhood, query, key, partition, _FORWARD_ELEMENTS)
    run(tasks, attend_to, partition.threads, scratch.trim)
    return _converted(out, call.query.dtype, partition), lse


def _backward(
    call: AttentionCall, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    query, key, value, logit_scale, neighborhood, scale = call
    partition, precision = partition_of(query, neighborhood), _precision(call)
    q, k = _normalized(query, key, logit_scale, precision, partition)
    dq = empty(query.shape, precision, query.device)
    # Tiles overlap, and blocks may share keys (VAR's mask). Their gradients are summed in a fixed order, and
    # in lse's type, which is at least float32.
    dk, dv = (empty(tensor.shape, lse.dtype, key.device) for tensor in (key, value))

    def clear(task: TokenTask) -> None:
        dk[:, task.keys].zero_()
        dv[:, task.keys].zero_()

    run(token_tasks(query, key), clear, partition.threads)
    q, k, v, out, grad_out = (
        _in_rows(tensor, precision, partition) for tensor in (q, k, value, out, grad_out)
    )
    whole = Operands(q, k, v, out, lse.transpose(1, 2), scale)
    gradients = Gradients(grad_out, None if grad_lse is None else grad_lse.transpose(1, 2), dq, dk, dv)
    attend_to = functools.partial(backward_task, whole=whole, gradients=gradients)
    tasks = attention_tasks(neighborhood, q, k, partition, _BACKWARD_ELEMENTS)
    run(tasks, attend_to, partition.threads, scratch.trim)
    grad_factor = _normalized_backward(dq, dk, query, key, logit_scale, partition)
    dq, dk, dv = (_converted(tensor, query.dtype, partition) for tensor in (dq, dk, dv))
    return dq, dk, dv, grad_factor


def _precision(call: AttentionCall) -> torch.dtype:
    """Return the type to compute in: on a CPU, where products of halves are slow, float32 for them."""
    return call.precise if call.device.type == "cpu" else call.query.dtype


def _in_rows(tensor: Tensor, dtype: torch.dtype, partition: Partition) -> Tensor:
    """Return a tensor (B, L, H, D) of a type whose (H, D) rows are contiguous, as tasks gather them."""
    if tensor.stride(3) == 1 and tensor.stride(2) == tensor.shape[3]:
        return _converted(tensor, dtype, partition)
    return _copied(tensor, dtype, partition)


def _converted(tensor: Tensor, dtype: torch.dtype, partition: Partition) -> Tensor:
    return tensor if tensor.dtype == dtype else _copied(tensor, dtype, partition)


def _copied(tensor: Tensor, dtype: torch.dtype, partition: Partition) -> Tensor:
    copied = empty(tensor.shape, dtype, tensor.device)

    def copy(task: TokenTask) -> None:
        copied[:, task.queries].copy_(tensor[:, task.queries])

    run(token_tasks(tensor, tensor), copy, partition.threads)
    return copied


def _normalized(
    query: Tensor, key: Tensor, logit_scale: Tensor | None, dtype: torch.dtype, partition: Partition
) -> tuple[Tensor, Tensor]:
    """Do what `normalized` does, in tasks: PyTorch's own threads would keep spinning while ours work."""
    if logit_scale is None:
        return query, key
    q, k = (empty(tensor.shape, dtype, tensor.device) for tensor in (query, key))

    def normalize(task: TokenTask) -> None:
        unit_q, unit_k = normalized(
            query[:, task.queries].to(dtype), key[:, task.keys].to(dtype), logit_scale
        )
        q[:, task.queries].copy_(unit_q)
        k[:, task.keys].copy_(unit_k)

    run(token_tasks(query, key), normalize, partition.threads)
    return q, k


def _normalized_backward(
    dq: Tensor, dk: Tensor, query: Tensor, key: Tensor, logit_scale: Tensor | None, partition: Partition
) -> Tensor | None:
    """Turn the gradients of q' and k' into those of q and k, in place; return that of logit_scale."""
    if logit_scale is None:
        return None
    total = torch.zeros(logit_scale.shape, dtype=dk.dtype, device=query.device)

    def undo(task: TokenTask) -> Addition:
        queries, keys = task.queries, task.keys
        grad_q, grad_k, factor = normalized_backward(
            dq[:, queries], dk[:, keys], query[:, queries], key[:, keys], logit_scale
        )
        dq[:, queries].copy_(grad_q)
        dk[:, keys].copy_(grad_k)
        assert factor is not None
        return functools.partial(total.add_, factor)

    run(token_tasks(query, key), undo, partition.threads)
    return total.to(logit_scale.dtype)
