"""How a call is cut into tasks: tiles of windowed blocks, heads of dense blocks, tokens of whole tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mvar_kernels import caches
from mvar_kernels.backends.tiled.layout import Layout, computed_scores, layout_of
from mvar_kernels.backends.tiled.workers import workers_and_threads
from mvar_kernels.pyramid import Neighborhood, WindowBlock

# Products of query and key elements below which a call is not worth waking threads for.
_LEAST_PRODUCTS = 3 << 26
# Elements of whole tensors, and of a dense block's keys or scores, in one task.
_ELEMENTS = 1 << 18


class Partition(NamedTuple):
    """How cores share a call.

    Attributes:
        threads: cores that take tasks; 1 where the calling thread does all.
        cores_per_task: how many cores the operations of a task use; a task is as many times as large.
    """

    threads: int
    cores_per_task: int


class TileTask(NamedTuple):
    """Tiles that are gathered together.

    Attributes:
        layout: all tiles of the same grid of queries.
        batch: which batch elements.
        tiles: which tiles.
        key_shifts: see `layout.TileRun`.
    """

    layout: Layout
    batch: slice
    tiles: slice
    key_shifts: tuple[int, ...]


class HeadTask(NamedTuple):
    """Heads of a dense block.

    Attributes:
        block: the block.
        batch: which batch elements.
        heads: which heads of queries.
        key_heads: the heads of keys that these share.
    """

    block: WindowBlock
    batch: slice
    heads: slice
    key_heads: slice


class TokenTask(NamedTuple):
    """Queries and keys of whole tensors."""

    queries: slice
    keys: slice


def partition_of(query: Tensor, neighborhood: Neighborhood) -> Partition:
    """Decide who works on a call."""
    threads = torch.get_num_threads()
    batch, _, heads, dim = query.shape
    products = _scores(neighborhood) * batch * heads * dim
    if threads == 1 or query.device.type != "cpu" or products < _LEAST_PRODUCTS:
        return Partition(1, threads)
    return Partition(threads, workers_and_threads(threads)[1])


@caches.remembered(256)
def _scores(neighborhood: Neighborhood) -> int:
    return sum(
        block.num_queries * block.num_keys if block.is_dense else computed_scores(block)
        for block in neighborhood.blocks
    )


def attention_tasks(
    neighborhood: Neighborhood, query: Tensor, key: Tensor, partition: Partition, elements: int
) -> list[TileTask | HeadTask]:
    """Cut a call; the order of what is added to a key is the same for every partition.

    Args:
        neighborhood: who attends to whom, large grids last, as in a pyramid.
        query: (B, Lq, H, D).
        key: (B, Lk, Hkv, D).
        partition: who works.
        elements: gathered elements of keys in a task of one core; at least one tile is taken.
    """
    # The largest first, so that no thread is left with a large one at the end.
    grids = neighborhood.by_queries()[::-1]
    dense = [len(blocks) == 1 and blocks[0].is_dense for blocks in grids]
    tasks: list[TileTask | HeadTask] = []
    for blocks, is_dense in zip(grids, dense):
        if not is_dense:
            layout = layout_of(blocks, query.dtype, query.device)
            tasks.extend(_tile_tasks(layout, key, partition, elements))
    for blocks, is_dense in zip(grids, dense):
        if is_dense:
            tasks.extend(_head_tasks(blocks[0], query, key, partition))
    return tasks


def _tile_tasks(layout: Layout, key: Tensor, partition: Partition, elements: int) -> Iterator[TileTask]:
    batch, _, heads, dim = key.shape
    per_tile = layout.num_keys * heads * dim
    tiles_at_once = max(1, elements // per_tile) * partition.cores_per_task
    step = max(1, tiles_at_once // layout.widest)
    for b in range(0, batch, step):
        for run in layout.runs:
            for t in range(run.tiles.start, run.tiles.stop, tiles_at_once):
                tiles = slice(t, min(t + tiles_at_once, run.tiles.stop))
                yield TileTask(layout, slice(b, min(b + step, batch)), tiles, run.key_shifts)


def _head_tasks(block: WindowBlock, query: Tensor, key: Tensor, partition: Partition) -> Iterator[HeadTask]:
    batch, _, heads, dim = query.shape
    key_heads = key.shape[2]
    times = heads // key_heads
    if partition.threads == 1:
        yield HeadTask(block, slice(0, batch), slice(0, heads), slice(0, key_heads))
        return
    size = max(block.num_queries, dim) * block.num_keys
    per_task = max(1, _ELEMENTS // size) * partition.cores_per_task
    elements_at_once, heads_at_once = max(1, per_task // heads), max(1, min(heads, per_task) // times)
    for b in range(0, batch, elements_at_once):
        for h in range(0, key_heads, heads_at_once):
            end = h + heads_at_once
            group = slice(h * times, end * times), slice(h, end)
            yield HeadTask(block, slice(b, b + elements_at_once), *group)


def token_tasks(query: Tensor, key: Tensor) -> list[TokenTask]:
    """Cut whole tensors (B, L, H, D) along their tokens, in the same way on any number of cores."""
    count = max(1, max(query.numel(), key.numel()) // _ELEMENTS) if query.device.type == "cpu" else 1
    queries, keys = (
        [slice(length * i // count, length * (i + 1) // count) for i in range(count)]
        for length in (query.shape[1], key.shape[1])
    )
    return list(map(TokenTask, queries, keys))
