"""Who attends to whom, stated once.

Everything else (kernels, CPU path, oracle, models, benchmarks) reads its windows from here and computes none of its own.

A token at position i of an axis with n_q queries looks at the k = min(kernel, n_k) keys that begin at

    start(i) = clamp(c - k // 2, 0, n_k - k),    c = ((2 i + 1) n_k) // (2 n_q)

so a window is shifted at the border, never cut: every query has exactly k keys per axis. With equal grids c = i, which is the rule of
neighborhood attention (Hassani et al., arXiv 2204.07143) at stride and dilation 1; with unequal grids c is the corresponding place of the
other scale, the spatial Markov window of MVAR (arXiv 2505.12742).
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

Side = int | tuple[int, int]
Grid = tuple[int, int]

_INTS_PER_BLOCK = 8


@functools.lru_cache(maxsize=4096)
def window_starts(num_queries: int, num_keys: int, kernel: int) -> tuple[int, ...]:
    """First key of every query's window along one axis; each window has min(kernel, num_keys) keys."""
    k = min(kernel, num_keys)
    return tuple(
        min(max(((2 * i + 1) * num_keys) // (2 * num_queries) - k // 2, 0), num_keys - k)
        for i in range(num_queries)
    )


class Block(NamedTuple):
    """A grid of queries and the grid of keys that its windows slide over, both row-major in their packed sequences.

    `window` is already clamped to `key_grid`; a window as large as the grid is dense attention.
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

    def axis_starts(self, axis: int) -> tuple[int, ...]:
        """Window starts along rows (axis 0) or columns (axis 1)."""
        return window_starts(self.query_grid[axis], self.key_grid[axis], self.window[axis])

    def mask(self) -> torch.Tensor:
        """(num_queries, num_keys) bool, True where attended."""
        rows, cols = (self._axis_mask(axis) for axis in (0, 1))
        return (rows[:, None, :, None] & cols[None, :, None, :]).reshape(self.num_queries, self.num_keys)

    def _axis_mask(self, axis: int) -> torch.Tensor:
        start = torch.tensor(self.axis_starts(axis))[:, None]
        key = torch.arange(self.key_grid[axis])
        return (key >= start) & (key < start + self.window[axis])


class Neighborhood(NamedTuple):
    """The general form that every backend takes: blocks whose queries tile 0 .. num_queries - 1 without overlap.

    Keys may be shared between blocks (VAR's block-causal mask) or seen by none.
    """

    blocks: tuple[Block, ...]
    num_queries: int
    num_keys: int

    @classmethod
    def of_grids(cls, query_grid: Grid, key_grid: Grid, window: Grid) -> Neighborhood:
        """One grid of queries over one grid of keys; windows larger than the key grid are the key grid."""
        block = Block(0, query_grid, 0, key_grid, _clamp(window, key_grid))
        return cls((block,), block.num_queries, block.num_keys)

    def attended_pairs(self) -> int:
        """Number of (query, key) pairs with a score, per batch element and head."""
        return sum(block.num_queries * block.window[0] * block.window[1] for block in self.blocks)

    def mask(self) -> torch.Tensor:
        """(num_queries, num_keys) bool, True where attended."""
        mask = torch.zeros(self.num_queries, self.num_keys, dtype=torch.bool)
        for block in self.blocks:
            rows = slice(block.query_offset, block.query_offset + block.num_queries)
            cols = slice(block.key_offset, block.key_offset + block.num_keys)
            mask[rows, cols] = block.mask()
        return mask

    def encode(self) -> list[int]:
        """As a flat list of ints, the only form that an operator schema can carry; `decode` takes it back."""
        flat = [self.num_queries, self.num_keys]
        for b in self.blocks:
            flat += [b.query_offset, *b.query_grid, b.key_offset, *b.key_grid, *b.window]
        return flat

    @classmethod
    def decode(cls, flat: Sequence[int]) -> Neighborhood:
        return _decode(tuple(flat))


@functools.lru_cache(maxsize=1024)
def _decode(flat: tuple[int, ...]) -> Neighborhood:
    num_queries, num_keys, *rest = flat
    blocks = []
    for i in range(0, len(rest), _INTS_PER_BLOCK):
        q_offset, q_h, q_w, k_offset, k_h, k_w, w_h, w_w = rest[i : i + _INTS_PER_BLOCK]
        blocks.append(Block(q_offset, (q_h, q_w), k_offset, (k_h, k_w), (w_h, w_w)))
    return Neighborhood(tuple(blocks), num_queries, num_keys)


class Pyramid:
    """Scales of tokens packed coarse to fine, row-major inside a scale, each scale attending inside itself.

    Args:
        sides: one int (square) or (height, width) pair per scale, coarse to fine.
        kernel_size: window of the scales that are not dense: an int, a tuple (kh, kw), or a *list* with one int, tuple or None (dense)
            per scale. Windows larger than a scale are the whole scale.
        dense_scales: the first `dense_scales` scales attend to the whole scale, whatever `kernel_size` says.

    Attributes:
        sides: ((h, w), ...) per scale.
        windows: ((kh, kw), ...) per scale, clamped to the scale.
        offsets: first token of every scale.
        length: number of tokens L.
        num_scales: number of scales.

    Raises:
        TypeError: an entry is not an int or a pair of ints.
        ValueError: an empty pyramid, a side or window below 1, a list of the wrong length, `dense_scales` outside 0 .. num_scales.

    Immutable, hashable and equal by value: two pyramids are equal when their tokens attend to the same tokens.
    """

    __slots__ = ("length", "offsets", "sides", "windows")

    sides: tuple[Grid, ...]
    windows: tuple[Grid, ...]
    offsets: tuple[int, ...]
    length: int

    def __init__(
        self,
        sides: Iterable[Side],
        kernel_size: int | tuple[int, int] | Sequence[int | tuple[int, int] | None] = 7,
        dense_scales: int = 0,
    ) -> None:
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
        dense_scales = _as_int(dense_scales, "dense_scales")
        if not 0 <= dense_scales <= len(grids):
            raise ValueError(
                f"dense_scales must be between 0 and the number of scales ({len(grids)}), got {dense_scales}"
            )
        per_scale = kernel_size if isinstance(kernel_size, list) else [kernel_size] * len(grids)
        if len(per_scale) != len(grids):
            raise ValueError(
                f"kernel_size as a list needs one entry per scale ({len(grids)}), got {len(per_scale)}"
            )
        windows = tuple(
            grid if scale < dense_scales or kernel is None else _clamp(as_pair(kernel, "kernel_size"), grid)
            for scale, (grid, kernel) in enumerate(zip(grids, per_scale))
        )
        offsets = [0]
        for h, w in grids:
            offsets.append(offsets[-1] + h * w)
        for name, value in (
            ("sides", grids),
            ("windows", windows),
            ("offsets", tuple(offsets[:-1])),
            ("length", offsets[-1]),
        ):
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Pyramid is immutable; make a new one instead of setting {name!r}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a Pyramid is immutable; {name!r} cannot be deleted")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pyramid) and (self.sides, self.windows) == (other.sides, other.windows)

    def __hash__(self) -> int:
        return hash((self.sides, self.windows))

    def __repr__(self) -> str:
        sides = ", ".join(str(h) if h == w else f"{h}x{w}" for h, w in self.sides)
        windows = ", ".join("dense" if k == g else f"{k[0]}x{k[1]}" for k, g in zip(self.windows, self.sides))
        return f"Pyramid(sides=[{sides}], windows=[{windows}], length={self.length})"

    def __reduce__(self) -> tuple[type[Pyramid], tuple[tuple[Grid, ...], list[Grid]]]:
        return Pyramid, (self.sides, list(self.windows))

    @property
    def num_scales(self) -> int:
        return len(self.sides)

    def scale_slice(self, scale: int) -> slice:
        """Tokens of one scale inside the packed sequence."""
        h, w = self.sides[scale]
        return slice(self.offsets[scale], self.offsets[scale] + h * w)

    def select(self, scales: range) -> Pyramid:
        """The pyramid of consecutive scales alone, with the same windows."""
        picked = list(scales)
        return Pyramid([self.sides[s] for s in picked], [self.windows[s] for s in picked])

    def neighborhood(self) -> Neighborhood:
        """MVAR: every token inside its own scale, over its window."""
        return _pyramid_neighborhood(self)

    def causal_neighborhood(self) -> Neighborhood:
        """VAR: every token of scale s over all tokens of scales 0 .. s (a dense window over one row of keys)."""
        return _causal_neighborhood(self)

    def mask(self) -> torch.Tensor:
        """(L, L) bool, True where attended. For oracles and pictures: no kernel builds it."""
        return self.neighborhood().mask()

    def causal_mask(self) -> torch.Tensor:
        """(L, L) bool, VAR's block-causal mask over the same tokens."""
        return self.causal_neighborhood().mask()

    def attended_pairs(self) -> int:
        """Number of (query, key) pairs with a score, per batch element and head."""
        return self.neighborhood().attended_pairs()


@functools.lru_cache(maxsize=256)
def _pyramid_neighborhood(pyramid: Pyramid) -> Neighborhood:
    blocks = tuple(
        Block(offset, grid, offset, grid, window)
        for offset, grid, window in zip(pyramid.offsets, pyramid.sides, pyramid.windows)
    )
    return Neighborhood(blocks, pyramid.length, pyramid.length)


@functools.lru_cache(maxsize=256)
def _causal_neighborhood(pyramid: Pyramid) -> Neighborhood:
    blocks = []
    for offset, (h, w) in zip(pyramid.offsets, pyramid.sides):
        seen = (1, offset + h * w)
        blocks.append(Block(offset, (h, w), 0, seen, seen))
    return Neighborhood(tuple(blocks), pyramid.length, pyramid.length)


def as_pair(value: object, name: str) -> Grid:
    """An int or a pair of ints as (rows, columns), each at least 1; `name` is the argument to blame."""
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
