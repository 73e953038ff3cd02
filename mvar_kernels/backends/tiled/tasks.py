"""How a call is cut into tasks: tiles of windowed blocks, heads of dense blocks, tokens of whole tensors."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mvar_kernels.backends.tiled.layout import Layout, computed_scores, layout_of
from mvar_kernels.backends.tiled.workers import workers_and_threads
from mvar_kernels.pyramid import Neighborhood, WindowBlock

# Products of query and key elements below which a call is not worth waking threads for.
_LEAST_PRODUCTS = 3 << 26
# Elements of whole tensors, and of a dense block's keys or scores, in one task.
_ELEMENTS = 1 << 18


class Cut(NamedTuple):
    """How many threads share a call, and in what portions.

    Attributes:
        threads: cores; 1 where the calling thread does all.
        portion: how many times the work that fits the cache of one core makes a task.
    """

    threads: int
    portion: int


class TileTask(NamedTuple):
    """Tiles of a windowed block that are gathered together.

    Attributes:
        block: the block.
        layout: its tiles.
        batch: which batch elements.
        tiles: which tiles.
        first_key_rows: for each strip, its first key row inside the tiles' rectangles.
        lane, turn: see `workers.Task`.
    """

    block: WindowBlock
    layout: Layout
    batch: slice
    tiles: slice
    first_key_rows: tuple[int, ...]
    lane: Hashable
    turn: int


class HeadTask(NamedTuple):
    """Heads of a dense block.

    Attributes:
        block: the block.
        batch: which batch elements.
        heads: which heads.
        lane, turn: see `workers.Task`.
    """

    block: WindowBlock
    batch: slice
    heads: slice
    lane: Hashable = None
    turn: int = 0


class TokenTask(NamedTuple):
    """Tokens of whole tensors.

    Attributes:
        number: counted from 0.
        queries: which queries.
        keys: which keys.
        lane, turn: see `workers.Task`.
    """

    number: int
    queries: slice
    keys: slice
    lane: Hashable = None
    turn: int = 0


def cut_for(query: Tensor, neighborhood: Neighborhood) -> Cut:
    """Decide who works on a call."""
    threads = torch.get_num_threads()
    batch, _, heads, dim = query.shape
    products = _scores(neighborhood) * batch * heads * dim
    if threads == 1 or query.device.type != "cpu" or products < _LEAST_PRODUCTS:
        return Cut(1, threads)
    return Cut(threads, workers_and_threads(threads)[1])


@functools.lru_cache(maxsize=256)
def _scores(neighborhood: Neighborhood) -> int:
    return sum(
        block.num_queries * block.num_keys if block.is_dense else computed_scores(block)
        for block in neighborhood.blocks
    )


@functools.lru_cache(maxsize=256)
def passes(neighborhood: Neighborhood) -> tuple[tuple[WindowBlock, ...], ...]:
    """Cut the blocks into passes without a common query; what later passes compute is added to the queries'.

    The first pass has each query's last block, that of its own scale. Attending to one block after the other
    copies fewer keys than one softmax over all of them, which would need them side by side.
    """
    grouped = neighborhood.by_queries()
    return tuple(
        tuple(blocks[-1 - number] for blocks in grouped if number < len(blocks))
        for number in range(max(map(len, grouped), default=0))
    )


def groups(blocks: Sequence[WindowBlock]) -> Iterator[list[WindowBlock]]:
    """Yield the blocks in groups that share no keys, as only those may add to them at the same time."""
    group: list[WindowBlock] = []
    for block in blocks:
        if any(_overlap(block.key_slice, other.key_slice) for other in group):
            yield group
            group = []
        group.append(block)
    yield group


def _overlap(one: slice, other: slice) -> bool:
    return bool(one.start < other.stop and other.start < one.stop)


def attention_tasks(
    blocks: Sequence[WindowBlock], query: Tensor, cut: Cut, elements: int
) -> list[TileTask | HeadTask]:
    """Cut blocks that share no keys.

    Args:
        blocks: the blocks, large ones last, as in a pyramid.
        query: (B, L, H, D).
        cut: who works.
        elements: gathered elements of keys in a task of portion 1; at least one tile is taken.
    """
    tasks: list[TileTask | HeadTask] = []
    # The largest first, so that no thread is left with a large one at the end.
    for block in reversed(blocks):
        make = _head_tasks if block.is_dense else functools.partial(_tile_tasks, elements=elements)
        tasks.extend(make(block, query, cut))
    return tasks


def _tile_tasks(block: WindowBlock, query: Tensor, cut: Cut, elements: int) -> Iterator[TileTask]:
    batch, _, heads, dim = query.shape
    layout = layout_of(block, query.dtype, query.device)
    per_task = max(1, elements // (layout.keys.shape[1] * heads * dim)) * cut.portion
    widest = max(run.tiles.stop - run.tiles.start for run in layout.runs)
    step = max(1, per_task // widest)
    for b in range(0, batch, step):
        for run in layout.runs:
            for t in range(run.tiles.start, run.tiles.stop, per_task):
                tiles = slice(t, min(t + per_task, run.tiles.stop))
                lane = block.query_offset, b
                yield TileTask(
                    block, layout, slice(b, min(b + step, batch)), tiles, run.first_key_rows, lane, run.turn
                )


def _head_tasks(block: WindowBlock, query: Tensor, cut: Cut) -> Iterator[HeadTask]:
    batch, _, heads, dim = query.shape
    if cut.threads == 1:
        yield HeadTask(block, slice(0, batch), slice(0, heads))
        return
    size = max(block.num_queries, dim) * block.num_keys
    per_task = max(1, _ELEMENTS // size) * cut.portion
    elements_at_once, heads_at_once = max(1, per_task // heads), min(heads, per_task)
    for b in range(0, batch, elements_at_once):
        for h in range(0, heads, heads_at_once):
            yield HeadTask(block, slice(b, b + elements_at_once), slice(h, h + heads_at_once))


def token_tasks(query: Tensor, key: Tensor) -> list[TokenTask]:
    """Cut whole tensors (B, L, H, D) along their tokens, in the same way on any number of cores."""
    count = max(1, max(query.numel(), key.numel()) // _ELEMENTS) if query.device.type == "cpu" else 1
    queries, keys = (
        [slice(length * i // count, length * (i + 1) // count) for i in range(count)]
        for length in (query.shape[1], key.shape[1])
    )
    return [TokenTask(*each) for each in zip(range(count), queries, keys)]
