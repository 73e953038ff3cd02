"""Attention in PyTorch's own operations, which can be differentiated any number of times.

Derivatives that no kernel computes come from here: tangents (forward mode), and gradients of gradients. All
tiles of a grid are computed at once. Their scores take memory in proportion to the keys that tiles see, about
196 per query and head for windows of 7; those of a dense block are queries x keys.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mvar_kernels.backends import AttentionCall
from mvar_kernels.backends.dense import normalized, normalized_tangents, repeated
from mvar_kernels.backends.tiled.layout import layout_of
from mvar_kernels.backends.tiled.places import places_of
from mvar_kernels.pyramid import Neighborhood

# Reads rows of (B, L, H, D) for T tiles at once: (B, T, H, slots, D).
Rows = Callable[[Tensor], Tensor]


def attend(call: AttentionCall) -> tuple[Tensor, Tensor]:
    """Return out (B, Lq, H, Dv) in query's type and lse (B, H, Lq)."""
    query, key, value = _precise(call)
    q, k = normalized(query, key, call.logit_scale)

    def of_tiles(rows: Rows, cols: Rows, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        logits = _logits(rows(q), cols(k), bias, call.scale)
        return logits.softmax(-1) @ cols(value), logits.logsumexp(-1, keepdim=True)

    return _assembled(of_tiles, call)


def tangents(call: AttentionCall, along: AttentionCall) -> tuple[Tensor, Tensor]:
    """Return the derivatives of out and lse along the operands of another call."""
    (query, key, value), (dquery, dkey, dvalue) = _precise(call), _precise(along)
    scale = call.scale
    q, k = normalized(query, key, call.logit_scale)
    dq, dk = normalized_tangents(query, key, call.logit_scale, dquery, dkey, along.logit_scale)

    def of_tiles(rows: Rows, cols: Rows, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        probability = _logits(rows(q), cols(k), bias, scale).softmax(-1)
        dlogits = _logits(rows(dq), cols(k), None, scale) + _logits(rows(q), cols(dk), None, scale)
        dlse = (probability * dlogits).sum(-1, keepdim=True)
        return probability * (dlogits - dlse) @ cols(value) + probability @ cols(dvalue), dlse

    return _assembled(of_tiles, call)


def _precise(call: AttentionCall) -> tuple[Tensor, Tensor, Tensor]:
    key, value = (repeated(tensor, call.query.shape[2]) for tensor in (call.key, call.value))
    query = call.query
    # Not `call.precise`: PyTorch 2.6 does not compile types that properties return.
    precise = torch.promote_types(query.dtype, torch.float32)
    return query.to(precise), key.to(precise), value.to(precise)


def _logits(rows: Tensor, cols: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    logits = (rows @ cols.transpose(-2, -1)) * scale
    return logits if bias is None else logits + bias


def _rows(tokens: Tensor, tensor: Tensor) -> Tensor:
    # Indexing, not index_select: its gradient is summed in a fixed order on a GPU as well.
    return tensor[:, tokens].transpose(2, 3)


def _assembled(
    of_tiles: Callable[[Rows, Rows, Tensor | None], tuple[Tensor, Tensor]], call: AttentionCall
) -> tuple[Tensor, Tensor]:
    """Bring what `of_tiles` returns for all tiles, (B, T, H, slots, D or 1), into the order of queries."""
    outs, lses, tokens = [], [], []
    places = places_of(call.neighborhood, call.device)
    for queries, keys, bias in _tiles(call.neighborhood, call.query):
        if places is not None:
            queries, keys = places.queries[queries], places.keys[keys]
        out, lse = of_tiles(functools.partial(_rows, queries), functools.partial(_rows, keys), bias)
        outs.append(out.transpose(2, 3).flatten(1, 2))
        lses.append(lse.transpose(2, 3).flatten(1, 2))
        tokens.append(queries.flatten())
    # A query that a tile holds twice is taken from its first slot.
    slots = torch.cat(tokens)
    order = slots.argsort(stable=True)
    queries = torch.arange(call.neighborhood.num_queries, device=call.device)
    first = order[torch.searchsorted(slots[order], queries)]
    out, lse = torch.cat(outs, 1)[:, first], torch.cat(lses, 1)[:, first]
    return out.to(call.query.dtype), lse.squeeze(-1).transpose(1, 2)


def _tiles(neighborhood: Neighborhood, query: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Yield queries (T, m), keys (T, n) and bias (T, 1, m, n), or None, for tiles of one size."""
    for blocks in neighborhood.by_queries():
        first = blocks[0]
        if len(blocks) == 1 and first.is_dense:
            rows, cols = (
                torch.arange(tokens.start, tokens.stop, device=query.device)[None]
                for tokens in (first.query_slice, first.key_slice)
            )
            yield rows, cols, None
            continue
        layout = layout_of(blocks, torch.promote_types(query.dtype, torch.float32), query.device)
        for number, strip in enumerate(layout.strips):
            seen = [layout.keys(run.tiles)[:, strip.key_slots(run.key_shifts[number])] for run in layout.runs]
            yield layout.queries[:, strip.slots], torch.cat(seen), strip.bias(slice(None))
