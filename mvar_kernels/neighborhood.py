"""Who attends to whom, stated once.

Everything else (kernels, CPU path, oracle, models, benchmarks) reads its windows from here and computes none
itself. A mask is a product over the axes of a grid, so one axis is all there is to define.

A token at position i of an axis with n_q queries looks at the k = min(kernel, n_k) keys that begin at

    start(i) = clamp(c - k // 2, 0, n_k - k),    c = ((2 i + 1) n_k) // (2 n_q)

so a window is shifted at the border, never cut: every query has exactly k keys per axis. With equal grids
c = i, which is the rule of neighborhood attention (Hassani et al., arXiv 2204.07143). With unequal grids c is
the corresponding place of the other scale: the spatial Markov window of MVAR (arXiv 2505.12742).

On an axis of n queries and the same n keys there may also be, as in NATTEN 0.21.7,

    dilation d   tokens with equal i mod d are an axis of their own, of m = ceil((n - i mod d) / d) tokens, in
                 which token i has the position i // d; windows have k = min(kernel, m) keys of it
    stride s     the queries of positions g s .. g s + s - 1 share the window of one of them: of position
                 g s + s // 2, or of the last where the axis ends before that
    causal       no query sees a key behind itself; its first key is max(0, l - k + 1), where l is the last
                 query of those that share its window: itself with stride 1

Where NATTEN refuses (kernel x dilation larger than the axis, kernels of 1) this is what holds: a window
larger than what an axis has is all of it. The stride is at most the kernel, the dilation at most the axis.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from mvar_kernels import caches
from mvar_kernels.per_axis import Flags, Grid, as_flags, as_grid

MAX_RANK = 3


class AxisWindows(NamedTuple):
    """The windows of one axis.

    Queries and keys stand in an order in which each window is a range of keys, and in which neither the first
    nor the last key ever moves back from one query to the next: the groups of a dilation one after the other.

    Attributes:
        order: (n_q,) the query at each place of that order. With dilation keys have the same order; without,
            both have their own.
        starts: (n_q,) place of the first key of each query's window.
        stops: (n_q,) place behind the last one.
    """

    order: np.ndarray
    starts: np.ndarray
    stops: np.ndarray


@caches.remembered(1024)
def axis_windows(
    num_queries: int, num_keys: int, kernel: int, dilation: int = 1, stride: int = 1, causal: bool = False
) -> AxisWindows:
    """Return the windows of one axis, by the rule at the top of this file."""
    order = axis_order(num_queries, dilation)
    group, position = order % dilation, order // dilation
    # Tokens of each query's group, and the place of the first of them.
    size = (num_keys - group + dilation - 1) // dilation
    first = np.searchsorted(group, group)
    window = np.minimum(kernel, size)
    leader = position - position % stride + (stride - 1 if causal else stride // 2)
    leader = np.minimum(leader, size - 1)
    if causal:
        return AxisWindows(order, first + np.maximum(leader - window + 1, 0), first + position + 1)
    center = leader if num_queries == num_keys else ((2 * position + 1) * num_keys) // (2 * num_queries)
    starts = first + np.clip(center - window // 2, 0, size - window)
    return AxisWindows(order, starts, starts + window)


@caches.remembered(1024)
def axis_order(length: int, dilation: int) -> np.ndarray:
    """Return (length,) int64: the tokens of an axis, those of one group of a dilation side by side."""
    tokens = np.arange(length)
    return np.lexsort((tokens, tokens % dilation))


class WindowBlock(NamedTuple):
    """A grid of queries and the grid of keys that their windows slide over, of 1, 2 or 3 axes.

    Attributes:
        query_offset: first query in its packed sequence, where the grid lies row-major.
        query_grid: queries per axis.
        key_offset: first key in its packed sequence, where the grid lies row-major.
        key_grid: keys per axis.
        window: per axis, at most `key_grid`; equal to it for dense attention.
        dilation: per axis; () for 1 on all of them.
        stride: per axis, at most `window`; () for 1 on all of them.
        causal: per axis; () for none.
    """

    query_offset: int
    query_grid: Grid
    key_offset: int
    key_grid: Grid
    window: Grid
    dilation: Grid = ()
    stride: Grid = ()
    causal: Flags = ()

    @property
    def rank(self) -> int:
        return len(self.window)

    @property
    def num_queries(self) -> int:
        return math.prod(self.query_grid)

    @property
    def num_keys(self) -> int:
        return math.prod(self.key_grid)

    @property
    def is_dense(self) -> bool:
        return self.window == self.key_grid and not (self.dilation or any(self.causal))

    def shares_keys(self, other: WindowBlock) -> bool:
        """Return whether some key belongs to both blocks."""
        return (
            self.key_offset < other.key_offset + other.num_keys
            and other.key_offset < self.key_offset + self.num_keys
        )

    @property
    def query_slice(self) -> slice:
        """The block's queries in their packed sequence."""
        return slice(self.query_offset, self.query_offset + self.num_queries)

    @property
    def key_slice(self) -> slice:
        """The block's keys in their packed sequence."""
        return slice(self.key_offset, self.key_offset + self.num_keys)

    def axis(self, axis: int) -> AxisWindows:
        """Return the windows along one axis."""
        return axis_windows(
            self.query_grid[axis],
            self.key_grid[axis],
            self.window[axis],
            self.dilation[axis] if self.dilation else 1,
            self.stride[axis] if self.stride else 1,
            self.causal[axis] if self.causal else False,
        )

    def key_order(self, axis: int) -> np.ndarray:
        """Return the key at each place of an axis, in the order of `AxisWindows`."""
        return axis_order(self.key_grid[axis], self.dilation[axis] if self.dilation else 1)

    def mask(self) -> torch.Tensor:
        """Return (num_queries, num_keys) bool, True where attended."""
        mask = torch.ones((1,) * (2 * self.rank), dtype=torch.bool)
        for axis in range(self.rank):
            shape = [1] * (2 * self.rank)
            shape[axis], shape[self.rank + axis] = self.query_grid[axis], self.key_grid[axis]
            starts, stops, places = self.places(axis)
            seen = (places >= starts[:, None]) & (places < stops[:, None])
            mask = mask & torch.from_numpy(seen).view(shape)
        return mask.reshape(self.num_queries, self.num_keys)

    def places(self, axis: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the first place that each query sees, that behind the last, and the place of each key."""
        windows = self.axis(axis)
        queries = np.argsort(windows.order)
        return windows.starts[queries], windows.stops[queries], np.argsort(self.key_order(axis))

    def sees(self, device: torch.device | str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """Return the mask as a function of queries and keys, counted in their packed sequences."""
        tables = map(self.places, range(self.rank))
        axes = [[torch.from_numpy(table).to(device) for table in each] for each in tables]

        def seen(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
            q, k = query - self.query_offset, key - self.key_offset
            found = (q >= 0) & (q < self.num_queries) & (k >= 0) & (k < self.num_keys)
            q, k = q.clamp(0, self.num_queries - 1), k.clamp(0, self.num_keys - 1)
            for starts, stops, places in reversed(axes):  # the last axis runs fastest
                row, place = q % len(starts), places[k % len(places)]
                found = found & (starts[row] <= place) & (place < stops[row])
                q, k = q // len(starts), k // len(places)
            return found

        return seen


class Neighborhood(NamedTuple):
    """The general form of who attends to whom, which every backend takes.

    Attributes:
        blocks: their queries tile 0 .. num_queries - 1. Consecutive blocks of the same queries share one
            softmax; their keys do not overlap. Other blocks may share keys (VAR's block-causal mask), and
            some keys may be seen by none. A block with dilation shares its queries with dense blocks only,
            and its keys with none.
        num_queries: length of the sequence of queries.
        num_keys: length of the sequence of keys.
    """

    blocks: tuple[WindowBlock, ...]
    num_queries: int
    num_keys: int

    @classmethod
    def of_grids(
        cls,
        query_grid: Grid,
        key_grid: Grid,
        window: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        dilation: int | Sequence[int] = 1,
        is_causal: bool | Sequence[bool] = False,
    ) -> Neighborhood:
        """Put a grid of queries over a grid of keys; windows larger than the key grid are the key grid.

        Raises:
            TypeError, ValueError: an argument is not one value, or one per axis; a stride is larger than the
                window, a dilation larger than the grid, or either or a causal axis comes with unequal grids.
        """
        rank = len(query_grid)
        window, stride = as_grid(window, rank, "kernel_size"), as_grid(stride, rank, "stride")
        dilation, causal = as_grid(dilation, rank, "dilation"), as_flags(is_causal, rank, "is_causal")
        once = (1,) * rank
        # `min` would split a graph that serves many grids: those that hold the window, and the others. There
        # the operator clamps, in `decode`.
        fitted = _as_it_is if torch.compiler.is_compiling() else clamp
        if (stride, dilation) == (once, once) and not any(causal):
            block = WindowBlock(0, query_grid, 0, key_grid, fitted(window, key_grid))
            return cls((block,), block.num_queries, block.num_keys)
        for name, used in (
            ("stride", max(stride) > 1),
            ("dilation", max(dilation) > 1),
            ("is_causal", any(causal)),
        ):
            if used and query_grid != key_grid:
                raise ValueError(
                    f"{name} needs equal grids of queries and keys, got {query_grid} and {key_grid}"
                )
        if any(step > size for step, size in zip(stride, window)):
            raise ValueError(f"stride must be at most kernel_size, got {stride} and {window}")
        if any(step > size for step, size in zip(dilation, query_grid)):
            raise ValueError(f"dilation must be at most the grid {query_grid}, got {dilation}")
        window = fitted(window, key_grid)
        # A window that is all there is does not depend on who leads it.
        stride = fitted(stride, window)
        steps = dilation if max(dilation) > 1 else (), stride if max(stride) > 1 else ()
        block = WindowBlock(0, query_grid, 0, key_grid, window, *steps, causal if any(causal) else ())
        return cls((block,), block.num_queries, block.num_keys)

    def check(self) -> None:
        """Raise ValueError or TypeError, of one line, unless the blocks are what `Neighborhood` says."""
        _check(self)

    def by_queries(self) -> tuple[tuple[WindowBlock, ...], ...]:
        """Return the blocks, those of the same queries together."""
        return _by_queries(self)

    def attended_pairs(self) -> int:
        """Count the (query, key) pairs with a score, per batch element and head."""
        return _attended_pairs(self)

    def mask(self) -> torch.Tensor:
        """Return (num_queries, num_keys) bool, True where attended."""
        mask = torch.zeros(self.num_queries, self.num_keys, dtype=torch.bool)
        for block in self.blocks:
            mask[block.query_slice, block.key_slice] = block.mask()
        return mask

    def mask_mod(self, device: torch.device | str = "cpu") -> Callable[..., torch.Tensor]:
        """Return the mask as FlexAttention takes it: (batch, head, query, key) -> bool.

        Args:
            device: where its tables lie: a few numbers per row and column of the grids.
        """
        sees = [block.sees(device) for block in self.blocks]
        return lambda batch, head, query, key: functools.reduce(operator.or_, (f(query, key) for f in sees))

    def encode(self) -> list[int]:
        """Return a flat list of ints, all that an operator schema can carry; `decode` is the inverse."""
        flat = [self.num_queries, self.num_keys]
        for block in self.blocks:
            per_axis = [*block.dilation, *block.stride, *map(int, block.causal)]
            given = block.dilation, block.stride, block.causal
            flat += [len(block.window), *(int(len(each) > 0) for each in given)]
            flat += [block.query_offset, *block.query_grid, block.key_offset, *block.key_grid, *block.window]
            flat += per_axis
        # In a graph that serves many grids some are symbols, which int() would make constants.
        return flat if torch.compiler.is_compiling() else [int(number) for number in flat]

    @classmethod
    def decode(cls, flat: Sequence[int]) -> Neighborhood:
        """Rebuild a neighborhood from what `encode` returned, and check it."""
        return _decode(tuple(flat))


@caches.remembered(1024)
def _check(neighborhood: Neighborhood) -> None:
    next_query = 0
    for blocks in _by_queries(neighborhood):
        for block in blocks:
            _check_block(block)
            if block.key_offset < 0 or block.key_slice.stop > neighborhood.num_keys:
                raise ValueError(
                    f"neighborhood has {neighborhood.num_keys} keys, which does not hold those of {block}"
                )
        if blocks[0].query_offset != next_query:
            raise ValueError(f"neighborhood must name queries in order, {next_query} next, got {blocks[0]}")
        next_query = blocks[0].query_slice.stop
        keys = sorted((block.key_slice.start, block.key_slice.stop) for block in blocks)
        if any(one[1] > other[0] for one, other in itertools.pairwise(keys)):
            raise ValueError(f"neighborhood lets queries see a key twice: {blocks}")
        if any(block.dilation for block in blocks) and sum(not block.is_dense for block in blocks) > 1:
            raise ValueError(f"neighborhood lets a dilated block share its queries with a window: {blocks}")
    if next_query != neighborhood.num_queries:
        raise ValueError(
            f"neighborhood has {neighborhood.num_queries} queries, but blocks for {next_query} of them"
        )
    for one in (block for block in neighborhood.blocks if block.dilation):
        if sum(one.shares_keys(other) for other in neighborhood.blocks) > 1:
            raise ValueError(f"neighborhood lets a dilated block share its keys: {one}")


def _check_block(block: WindowBlock) -> None:
    """Raise an error unless a block on its own is what `WindowBlock` says."""
    rank = len(block.window)
    offsets = block.query_offset, block.key_offset
    per_axis = block.query_grid, block.key_grid, block.window, block.dilation, block.stride
    numbers = [*offsets, *itertools.chain(*per_axis)]
    sizes = [*map(len, per_axis), len(block.causal)]
    if (
        not all(type(number) is int for number in numbers)
        or not all(type(flag) is bool for flag in block.causal)
        or not 1 <= rank <= MAX_RANK
        or sizes[:3] != [rank] * 3
        or not {0, rank}.issuperset(sizes)
    ):
        raise TypeError(f"neighborhood must consist of ints and tuples of 1 to 3 ints, got {block}")
    if min(*block.query_grid, *block.key_grid, *block.window) < 1 or block.window != clamp(
        block.window, block.key_grid
    ):
        raise ValueError(
            f"neighborhood needs grid sides of at least 1, and windows from 1 to the key grid, got {block}"
        )
    if (block.dilation or block.stride or block.causal) and block.query_grid != block.key_grid:
        raise ValueError(f"neighborhood needs equal grids for dilation, stride and causal, got {block}")
    if not all(1 <= step <= size for step, size in zip(block.dilation, block.key_grid)) or not all(
        1 <= step <= size for step, size in zip(block.stride, block.window)
    ):
        raise ValueError(
            f"neighborhood needs dilations from 1 to the grid, and strides from 1 to the window, got {block}"
        )


@caches.remembered(1024)
def _by_queries(neighborhood: Neighborhood) -> tuple[tuple[WindowBlock, ...], ...]:
    return tuple(tuple(group) for _, group in itertools.groupby(neighborhood.blocks, lambda b: b[:2]))


@caches.remembered(1024)
def _attended_pairs(neighborhood: Neighborhood) -> int:
    axes = ([block.axis(axis) for axis in range(block.rank)] for block in neighborhood.blocks)
    return sum(math.prod(int((axis.stops - axis.starts).sum()) for axis in each) for each in axes)


@caches.remembered(1024)
def _decode(flat: tuple[int, ...]) -> Neighborhood:
    num_queries, num_keys, *rest = flat
    numbers = iter(rest)

    def take(count: int) -> tuple[int, ...]:
        return tuple(itertools.islice(numbers, count))

    blocks = []
    for rank in numbers:
        has = take(3)
        (query_offset,), query_grid, (key_offset,), key_grid = take(1), take(rank), take(1), take(rank)
        window, (dilation, stride, causal) = take(rank), (take(rank * each) for each in has)
        window = clamp(window, key_grid)
        stride = clamp(stride, window)  # () stays ()
        placed = query_offset, query_grid, key_offset, key_grid, window
        blocks.append(WindowBlock(*placed, dilation, stride, tuple(map(bool, causal))))
    neighborhood = Neighborhood(tuple(blocks), num_queries, num_keys)
    _check(neighborhood)
    return neighborhood


def clamp(window: Grid, grid: Grid) -> Grid:
    return tuple(map(min, window, grid))


def _as_it_is(window: Grid, grid: Grid) -> Grid:
    return window
