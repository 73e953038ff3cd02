"""How a call is cut into tasks: tiles of windowed blocks, heads of dense blocks, tokens of whole tensors."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Sequence
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


class Cut(NamedTuple):
    """How many threads share a call, and in what portions.

    Attributes:
        threads: cores; 1 where the calling thread does all.
        portion: how many times the work that fits the cache of one core makes a task.
    """

    threads: int
    portion: int


class TileTask(NamedTuple):
    """Tiles that are gathered together.

    Attributes:
        layout: all tiles of the same grid of queries.
        batch: which batch elements.
        tiles: which tiles.
        key_shifts: see `layout.TileRun`.
        lane, turn: see `workers.Task`.
    """

    layout: Layout
    batch: slice
    tiles: slice
    key_shifts: tuple[int, ...]
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


@caches.remembered(256)
def _scores(neighborhood: Neighborhood) -> int:
    return sum(
        block.num_queries * block.num_keys if block.is_dense else computed_scores(block)
        for block in neighborhood.blocks
    )


def groups(neighborhood: Neighborhood) -> Iterator[list[tuple[WindowBlock, ...]]]:
    """Yield what each grid of queries sees, in groups that can be computed at the same time.

    Where gradients of keys are summed, tiles that share them do so in turns. Heads of dense blocks have no
    turns, so one group never holds a dense block and another block with its keys.
    """
    group: list[tuple[WindowBlock, ...]] = []
    for blocks in neighborhood.by_queries():
        if any(_share(blocks, other) and (_whole(blocks) or _whole(other)) for other in group):
            yield group
            group = []
        group.append(blocks)
    yield group


def _whole(blocks: tuple[WindowBlock, ...]) -> bool:
    """Whether heads, not tiles, make the tasks."""
    return len(blocks) == 1 and blocks[0].is_dense


def _share(ones: tuple[WindowBlock, ...], others: tuple[WindowBlock, ...]) -> bool:
    return any(
        one.key_slice.start < other.key_slice.stop and other.key_slice.start < one.key_slice.stop
        for one, other in itertools.product(ones, others)
    )


def attention_tasks(
    group: Sequence[tuple[WindowBlock, ...]], query: Tensor, cut: Cut, elements: int
) -> list[TileTask | HeadTask]:
    """Cut a group of `groups`.

    Args:
        group: what each grid of queries sees, large ones last, as in a pyramid.
        query: (B, L, H, D).
        cut: who works.
        elements: gathered elements of keys in a task of portion 1; at least one tile is taken.
    """
    tasks: list[TileTask | HeadTask] = []
    # The largest first, so that no thread is left with a large one at the end.
    tiled = [blocks for blocks in reversed(group) if not _whole(blocks)]
    tasks.extend(_tile_tasks(tiled, query, cut, elements))
    for blocks in reversed(group):
        if _whole(blocks):
            tasks.extend(_head_tasks(blocks[0], query, cut))
    return tasks


def _tile_tasks(
    tiled: Sequence[tuple[WindowBlock, ...]], query: Tensor, cut: Cut, elements: int
) -> Iterator[TileTask]:
    batch, _, heads, dim = query.shape
    layouts = [layout_of(blocks, query.dtype, query.device) for blocks in tiled]
    per_task = [max(1, elements // (layout.num_keys * heads * dim)) * cut.portion for layout in layouts]
    steps = [max(1, tiles // layout.widest) for tiles, layout in zip(per_task, layouts)]
    # Grids of queries that share keys take their turns one after the other.
    one_lane = any(_share(*pair) for pair in itertools.combinations(tiled, 2))
    if one_lane:
        steps = [min(steps)] * len(steps)
    first_turn = 0
    for number, (layout, tiles_at_once, step) in enumerate(zip(layouts, per_task, steps)):
        for b in range(0, batch, step):
            lane = (0 if one_lane else number), b
            for run in layout.runs:
                for t in range(run.tiles.start, run.tiles.stop, tiles_at_once):
                    tiles = slice(t, min(t + tiles_at_once, run.tiles.stop))
                    turn = first_turn + run.turn
                    yield TileTask(layout, slice(b, min(b + step, batch)), tiles, run.key_shifts, lane, turn)
        first_turn += layout.turns if one_lane else 0


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
