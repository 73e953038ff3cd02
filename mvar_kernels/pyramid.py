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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from mvar_kernels import caches

Side = int | tuple[int, int]
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
        block = WindowBlock(0, query_grid, 0, key_grid, _clamp(window, key_grid))
        return cls((block,), block.num_queries, block.num_keys)

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
        """Rebuild a neighborhood from what `encode` returned."""
        return _decode(tuple(flat))


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
    return Neighborhood(tuple(blocks), num_queries, num_keys)


@dataclass(frozen=True, init=False)
class Pyramid:
    """Scales of tokens packed coarse to fine, row-major inside a scale.

    Each scale attends to itself and, if asked for, to the scales before it.

    Immutable, hashable and equal by value: two pyramids are equal when their tokens attend to the same
    tokens.

    Args:
        sides: one int (square) or (height, width) pair per scale, coarse to fine.
        kernel_size: window of the scales that are not dense: an int, a tuple (kh, kw), or a *list* with one
            int, tuple or None (dense) per scale. A window larger than a scale is the whole scale.
        dense_scales: the first `dense_scales` scales attend to whole scales, whatever `kernel_size` says.
        previous_scales: how many scales before its own a token attends to as well, in one softmax: to the
            corresponding windows, whose size is that of the token's own scale, or to all of them if its scale
            is dense. 0 is MVAR; num_scales - 1 with dense scales is VAR.

    Attributes:
        sides: ((h, w), ...) per scale.
        windows: ((kh, kw), ...) per scale, over the scale itself, clamped to it.
        previous_windows: per scale ((kh, kw), ...) over the scales before it that it sees, coarse to fine.
        offsets: first token of every scale.
        length: number of tokens L.
        previous_scales: the most scales before its own that a token sees.

    Raises:
        TypeError: an entry is not an int or a pair of ints.
        ValueError: an empty pyramid, a side or window below 1, a list of the wrong length, `dense_scales`
            outside 0 .. num_scales, or `previous_scales` outside 0 .. num_scales - 1.
    """

    sides: tuple[Grid, ...]
    windows: tuple[Grid, ...]
    previous_windows: tuple[tuple[Grid, ...], ...]
    # Derived from the fields above, so equality and hash need not look at them.
    offsets: tuple[int, ...] = field(compare=False)
    length: int = field(compare=False)
    previous_scales: int = field(compare=False)

    def __init__(
        self,
        sides: Iterable[Side],
        kernel_size: int | tuple[int, int] | Sequence[int | tuple[int, int] | None] = 7,
        dense_scales: int = 0,
        previous_scales: int = 0,
    ) -> None:
        grids = _as_grids(sides)
        dense_scales = _as_int(dense_scales, "dense_scales")
        if not 0 <= dense_scales <= len(grids):
            raise ValueError(
                f"dense_scales must be between 0 and the number of scales ({len(grids)}), got {dense_scales}"
            )
        previous_scales = _as_int(previous_scales, "previous_scales")
        if not 0 <= previous_scales < len(grids):
            raise ValueError(
                f"previous_scales must be at least 0 and less than the number of scales ({len(grids)}), "
                f"got {previous_scales}"
            )
        per_scale = kernel_size if isinstance(kernel_size, list) else [kernel_size] * len(grids)
        if len(per_scale) != len(grids):
            raise ValueError(
                f"kernel_size as a list needs one entry per scale ({len(grids)}), got {len(per_scale)}"
            )
        windows = [
            # Windows over the scales from `first` to the query's own.
            tuple(
                grid
                if scale < dense_scales or kernel is None
                else _clamp(as_pair(kernel, "kernel_size"), grid)
                for grid in grids[max(0, scale - previous_scales) : scale + 1]
            )
            for scale, kernel in enumerate(per_scale)
        ]
        self._set(grids, windows)

    def _set(self, grids: tuple[Grid, ...], windows: Sequence[tuple[Grid, ...]]) -> None:
        """Set all fields, given per scale its windows over the scales that it sees, its own last."""
        offsets = [0]
        for h, w in grids:
            offsets.append(offsets[-1] + h * w)
        # The dataclass is frozen, so its fields can only be set like this.
        for name, value in {
            "sides": grids,
            "windows": tuple(each[-1] for each in windows),
            "previous_windows": tuple(each[:-1] for each in windows),
            "offsets": tuple(offsets[:-1]),
            "length": offsets[-1],
            "previous_scales": max(map(len, windows)) - 1,
        }.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        sides = ", ".join(str(h) if h == w else f"{h}x{w}" for h, w in self.sides)
        windows = ", ".join("dense" if k == g else f"{k[0]}x{k[1]}" for k, g in zip(self.windows, self.sides))
        previous = f", previous_scales={self.previous_scales}" if self.previous_scales else ""
        return f"Pyramid(sides=[{sides}], windows=[{windows}]{previous}, length={self.length})"

    @property
    def num_scales(self) -> int:
        """Number of scales S."""
        return len(self.sides)

    def scale_slice(self, scale: int) -> slice:
        """Return the tokens of one scale inside the packed sequence."""
        h, w = self.sides[scale]
        return slice(self.offsets[scale], self.offsets[scale] + h * w)

    def select(self, scales: range) -> Pyramid:
        """Return the pyramid of these scales alone, with the same windows over those that remain."""
        picked = list(scales)
        windows = []
        for place, scale in enumerate(picked):
            # Scales that lie next to each other here and did before.
            kept = 0
            while kept < min(place, len(self.previous_windows[scale])) and picked[place - kept - 1] == (
                scale - kept - 1
            ):
                kept += 1
            seen = self.previous_windows[scale]
            windows.append((*seen[len(seen) - kept :], self.windows[scale]))
        selected = object.__new__(Pyramid)
        selected._set(_as_grids(self.sides[s] for s in picked), windows)
        return selected

    def neighborhood(self) -> Neighborhood:
        """Every token attends to its window in its own scale and in the `previous_scales` before it."""
        return _pyramid_neighborhood(self)

    def step_neighborhood(self, scale: int) -> Neighborhood:
        """Put the queries of one scale over the keys of the scales that it sees, packed coarse to fine."""
        return _step_neighborhood(self, scale)

    def first_seen(self, scale: int) -> int:
        """Return the coarsest scale that the tokens of a scale attend to."""
        return scale - len(self.previous_windows[scale])

    def causal_neighborhood(self) -> Neighborhood:
        """VAR: every token of scale s attends to all tokens of scales 0 .. s."""
        return _causal_neighborhood(self.sides)

    def mask(self) -> torch.Tensor:
        """Return (L, L) bool, True where attended. For oracles and plots: no kernel builds it."""
        return self.neighborhood().mask()

    def causal_mask(self) -> torch.Tensor:
        """Return (L, L) bool, VAR's block-causal mask over the same tokens."""
        return self.causal_neighborhood().mask()

    def attended_pairs(self) -> int:
        """Count the (query, key) pairs with a score, per batch element and head."""
        return self.neighborhood().attended_pairs()


@caches.remembered(256)
def _pyramid_neighborhood(pyramid: Pyramid) -> Neighborhood:
    blocks = [block for scale in range(pyramid.num_scales) for block in _blocks_of_scale(pyramid, scale)]
    return Neighborhood(tuple(blocks), pyramid.length, pyramid.length)


@caches.remembered(256)
def _causal_neighborhood(sides: tuple[Grid, ...]) -> Neighborhood:
    return Pyramid(sides, dense_scales=len(sides), previous_scales=len(sides) - 1).neighborhood()


@caches.remembered(1024)
def _step_neighborhood(pyramid: Pyramid, scale: int) -> Neighborhood:
    first = pyramid.offsets[pyramid.first_seen(scale)]
    blocks = tuple(
        block._replace(query_offset=0, key_offset=block.key_offset - first)
        for block in _blocks_of_scale(pyramid, scale)
    )
    return Neighborhood(blocks, blocks[0].num_queries, pyramid.scale_slice(scale).stop - first)


def _blocks_of_scale(pyramid: Pyramid, scale: int) -> list[WindowBlock]:
    """Return the blocks of one scale's queries, one per scale of keys or run of scales that are seen whole.

    A run is one row of keys, however many scales it has, so that VAR's keys fill tiles as one scale would.
    """
    windows = (*pyramid.previous_windows[scale], pyramid.windows[scale])
    blocks: list[WindowBlock] = []
    whole_before = False
    # torch.compile traces this, so it is a plain loop.
    for key_scale, window in enumerate(windows, scale - len(windows) + 1):
        grid = pyramid.sides[key_scale]
        block = WindowBlock(
            pyramid.offsets[scale], pyramid.sides[scale], pyramid.offsets[key_scale], grid, window
        )
        whole = window == grid
        if whole and whole_before:
            before = blocks.pop()
            keys = (1, before.num_keys + block.num_keys)
            block = before._replace(key_grid=keys, window=keys)
        blocks.append(block)
        whole_before = whole
    return blocks


def _as_grids(sides: Iterable[Side]) -> tuple[Grid, ...]:
    try:
        grids = tuple(as_pair(side, "sides") for side in sides)
    except TypeError as error:
        if isinstance(sides, Iterable):
            raise
        raise TypeError(
            f"sides must be a sequence of ints or (height, width) pairs, got {sides!r}"
        ) from error
    if not grids:
        raise ValueError("sides must name at least one scale, got none")
    return grids


def as_pair(value: object, name: str) -> Grid:
    """Turn an int or a pair into (rows, columns), each at least 1; errors blame the argument `name`."""
    entries = value if isinstance(value, (tuple, list)) else (value, value)
    if len(entries) != 2:
        raise ValueError(f"{name} must be an int or a (rows, columns) pair, got {value!r}")
    pair = (_as_int(entries[0], name), _as_int(entries[1], name))
    if min(pair) < 1:
        raise ValueError(f"{name} must be at least 1, got {value!r}")
    return pair


def _as_int(value: object, name: str) -> int:
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {value!r}")
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be an int or a pair of ints, got {value!r}") from None


def _clamp(window: Grid, grid: Grid) -> Grid:
    return min(window[0], grid[0]), min(window[1], grid[1])
