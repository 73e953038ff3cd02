"""Who attends to whom, stated once.

Everything else (kernels, CPU path, oracle, models, benchmarks) reads its windows from here and computes none
itself.

A token at position i of an axis with n_q queries looks at the k = min(kernel, n_k) keys that begin at

    start(i) = clamp(c - k // 2, 0, n_k - k),    c = ((2 i + 1) n_k) // (2 n_q)

so a window is shifted at the border, never cut: every query has exactly k keys per axis. With equal grids
c = i, which is the rule of neighborhood attention (Hassani et al., arXiv 2204.07143) without stride or
dilation. With unequal grids c is the corresponding place of the other scale: the spatial Markov window of
MVAR (arXiv 2505.12742).
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from typing import NamedTuple

import torch

from mvar_kernels import caches

Grid = tuple[int, int]

_INTS_PER_BLOCK = 8


@caches.remembered(4096)
def window_starts(num_queries: int, num_keys: int, kernel: int) -> tuple[int, ...]:
    """Return the first key of each query's window along one axis; a window has min(kernel, num_keys) keys."""
    k = min(kernel, num_keys)
    return tuple(
        min(max(((2 * i + 1) * num_keys) // (2 * num_queries) - k // 2, 0), num_keys - k)
        for i in range(num_queries)
    )


class WindowBlock(NamedTuple):
    """A grid of queries and the grid of keys that their windows slide over.

    Attributes:
        query_offset: first query in its packed sequence, where the grid lies row-major.
        query_grid: (rows, columns) of queries.
        key_offset: first key in its packed sequence, where the grid lies row-major.
        key_grid: (rows, columns) of keys.
        window: (rows, columns), at most `key_grid`; equal to it for dense attention.
    """

    query_offset: int
    query_grid: Grid
    key_offset: int
    key_grid: Grid
    window: Grid

    @property
    def num_queries(self) -> int:
        return self.query_grid[0] * self.query_grid[1]

    @property
    def num_keys(self) -> int:
        return self.key_grid[0] * self.key_grid[1]

    @property
    def is_dense(self) -> bool:
        return self.window == self.key_grid

    @property
    def query_slice(self) -> slice:
        """The block's queries in their packed sequence."""
        return slice(self.query_offset, self.query_offset + self.num_queries)

    @property
    def key_slice(self) -> slice:
        """The block's keys in their packed sequence."""
        return slice(self.key_offset, self.key_offset + self.num_keys)

    def axis_starts(self, axis: int) -> tuple[int, ...]:
        """Return the first key of every query's window along rows (axis 0) or columns (axis 1)."""
        return window_starts(self.query_grid[axis], self.key_grid[axis], self.window[axis])

    def mask(self) -> torch.Tensor:
        """Return (num_queries, num_keys) bool, True where attended."""
        rows, cols = (self._axis_mask(axis) for axis in (0, 1))
        return (rows[:, None, :, None] & cols[None, :, None, :]).reshape(self.num_queries, self.num_keys)

    def _axis_mask(self, axis: int) -> torch.Tensor:
        start = torch.tensor(self.axis_starts(axis))[:, None]
        key = torch.arange(self.key_grid[axis])
        return (key >= start) & (key < start + self.window[axis])


class Neighborhood(NamedTuple):
    """The general form of who attends to whom, which every backend takes.

    Attributes:
        blocks: their queries tile 0 .. num_queries - 1. Consecutive blocks of the same queries share one
            softmax; their keys do not overlap. Other blocks may share keys (VAR's block-causal mask), and
            some keys may be seen by none.
        num_queries: length of the sequence of queries.
        num_keys: length of the sequence of keys.
    """

    blocks: tuple[WindowBlock, ...]
    num_queries: int
    num_keys: int

    @classmethod
    def of_grids(cls, query_grid: Grid, key_grid: Grid, window: Grid) -> Neighborhood:
        """Put a grid of queries over a grid of keys; windows larger than the key grid are the key grid."""
        block = WindowBlock(0, query_grid, 0, key_grid, clamp(window, key_grid))
        return cls((block,), block.num_queries, block.num_keys)

    def check(self) -> None:
        """Raise ValueError or TypeError, of one line, unless the blocks are what `Neighborhood` says."""
        _check(self)

    def by_queries(self) -> tuple[tuple[WindowBlock, ...], ...]:
        """Return the blocks, those of the same queries together."""
        return _by_queries(self)

    def attended_pairs(self) -> int:
        """Count the (query, key) pairs with a score, per batch element and head."""
        return sum(block.num_queries * block.window[0] * block.window[1] for block in self.blocks)

    def mask(self) -> torch.Tensor:
        """Return (num_queries, num_keys) bool, True where attended."""
        mask = torch.zeros(self.num_queries, self.num_keys, dtype=torch.bool)
        for block in self.blocks:
            mask[block.query_slice, block.key_slice] = block.mask()
        return mask

    def encode(self) -> list[int]:
        """Return a flat list of ints, all that an operator schema can carry; `decode` is the inverse."""
        flat = [self.num_queries, self.num_keys]
        for b in self.blocks:
            flat += [b.query_offset, *b.query_grid, b.key_offset, *b.key_grid, *b.window]
        return flat

    @classmethod
    def decode(cls, flat: Sequence[int]) -> Neighborhood:
        """Rebuild a neighborhood from what `encode` returned, and check it."""
        return _decode(tuple(flat))


@caches.remembered(1024)
def _check(neighborhood: Neighborhood) -> None:
    next_query = 0
    for blocks in _by_queries(neighborhood):
        for block in blocks:
            numbers = block.query_offset, *block.query_grid, block.key_offset, *block.key_grid, *block.window
            if len(numbers) != _INTS_PER_BLOCK or not all(type(number) is int for number in numbers):
                raise TypeError(f"neighborhood must consist of ints and pairs of ints, got {block}")
            if min(*block.query_grid, *block.key_grid, *block.window) < 1 or block.window != clamp(
                block.window, block.key_grid
            ):
                raise ValueError(
                    "neighborhood needs grid sides of at least 1, and windows from 1 to the key grid, "
                    f"got {block}"
                )
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
    if next_query != neighborhood.num_queries:
        raise ValueError(
            f"neighborhood has {neighborhood.num_queries} queries, but blocks for {next_query} of them"
        )


@caches.remembered(1024)
def _by_queries(neighborhood: Neighborhood) -> tuple[tuple[WindowBlock, ...], ...]:
    return tuple(tuple(group) for _, group in itertools.groupby(neighborhood.blocks, lambda b: b[:2]))


@caches.remembered(1024)
def _decode(flat: tuple[int, ...]) -> Neighborhood:
    num_queries, num_keys, *rest = flat
    blocks = []
    for i in range(0, len(rest), _INTS_PER_BLOCK):
        q_offset, q_h, q_w, k_offset, k_h, k_w, w_h, w_w = rest[i : i + _INTS_PER_BLOCK]
        blocks.append(WindowBlock(q_offset, (q_h, q_w), k_offset, (k_h, k_w), (w_h, w_w)))
    neighborhood = Neighborhood(tuple(blocks), num_queries, num_keys)
    _check(neighborhood)
    return neighborhood


def as_pair(value: object, name: str) -> Grid:
    """Turn an int or a pair into (rows, columns), each at least 1; errors blame the argument `name`."""
    value = plain(value)
    entries = value if isinstance(value, (tuple, list)) else (value, value)
    if len(entries) != 2:
        raise ValueError(f"{name} must be an int or a (rows, columns) pair, got {value!r}")
    pair = (as_int(entries[0], name), as_int(entries[1], name))
    if min(pair) < 1:
        raise ValueError(f"{name} must be at least 1, got {value!r}")
    return pair


def plain(value: object) -> object:
    """Turn arrays, tensors and their scalars into lists and numbers."""
    return value.tolist() if hasattr(value, "tolist") else value


def as_int(value: object, name: str) -> int:
    value = plain(value)
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {value!r}")
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be an int or a pair of ints, got {value!r}") from None


def clamp(window: Grid, grid: Grid) -> Grid:
    return min(window[0], grid[0]), min(window[1], grid[1])
