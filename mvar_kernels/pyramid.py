"""The scales of a pyramid, and the neighborhood that each of their tokens attends to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from mvar_kernels import caches
from mvar_kernels.neighborhood import MAX_RANK, Neighborhood, WindowBlock, clamp
from mvar_kernels.per_axis import Grid, as_grid, as_int, plain

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

__all__ = ["Grid", "Neighborhood", "Pyramid", "Side", "WindowBlock"]

Side = int | Grid


@dataclass(frozen=True, init=False)
class Pyramid:
    """Scales of tokens packed coarse to fine, row-major inside a scale.

    Each scale attends to itself and, if asked for, to the scales before it.

    Immutable, hashable and equal by value: two pyramids are equal when their tokens attend to the same
    tokens.

    Args:
        sides: one int (square) or (height, width) pair per scale, coarse to fine; or tuples of 1 or 3 ints
            for scales of as many axes, where an int is the length of all of them.
        kernel_size: window of the scales that are not dense: an int, a tuple with an int per axis, or a
            *list* with one int, tuple or None (dense) per scale. A window larger than a scale is the whole
            scale.
        dense_scales: the first `dense_scales` scales attend to whole scales, whatever `kernel_size` says.
        previous_scales: how many scales before its own a token attends to as well, in one softmax: to the
            corresponding windows, whose size is that of the token's own scale, or to all of them if its scale
            is dense. 0 is MVAR; num_scales - 1 with dense scales is VAR.

    Attributes:
        sides: ((h, w), ...) per scale, or as many ints as there are axes.
        windows: per scale, over the scale itself, clamped to it.
        previous_windows: per scale the windows over the scales before it that it sees, coarse to fine.
        offsets: first token of every scale.
        length: number of tokens L.
        kernel_size, dense_scales, previous_scales: as given, so that `dataclasses.replace` can change one.

    Raises:
        TypeError: an entry is not an int or a tuple of ints.
        ValueError: an empty pyramid, a side or window below 1, a list of the wrong length, `dense_scales`
            outside 0 .. num_scales, or `previous_scales` outside 0 .. num_scales - 1.
    """

    sides: tuple[Grid, ...]
    # With sides, what `dataclasses.replace` gives to __init__; the fields below say the same more exactly.
    kernel_size: Grid | list[Grid | None] = field(compare=False)
    dense_scales: int = field(compare=False)
    previous_scales: int = field(compare=False)
    windows: tuple[Grid, ...] = field(init=False)
    previous_windows: tuple[tuple[Grid, ...], ...] = field(init=False)
    # Derived from the fields above, so equality and hash need not look at them.
    offsets: tuple[int, ...] = field(init=False, compare=False)
    length: int = field(init=False, compare=False)

    def __init__(
        self,
        sides: Iterable[Side],
        kernel_size: int | Grid | Sequence[int | Grid | None] = 7,
        dense_scales: int = 0,
        previous_scales: int = 0,
    ) -> None:
        grids = _as_grids(sides)
        dense_scales = as_int(dense_scales, "dense_scales")
        if not 0 <= dense_scales <= len(grids):
            raise ValueError(
                f"dense_scales must be between 0 and the number of scales ({len(grids)}), got {dense_scales}"
            )
        previous_scales = as_int(previous_scales, "previous_scales")
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
        rank = len(grids[0])
        kernels = [None if kernel is None else as_grid(kernel, rank, "kernel_size") for kernel in per_scale]
        windows = [
            # Windows over the scales from `first` to the query's own.
            tuple(
                grid if scale < dense_scales or kernel is None else clamp(kernel, grid)
                for grid in grids[max(0, scale - previous_scales) : scale + 1]
            )
            for scale, kernel in enumerate(kernels)
        ]
        lengths = [math.prod(grid) for grid in grids]
        # No itertools.accumulate, which PyTorch 2.6 does not compile.
        ends = [sum(lengths[: scale + 1]) for scale in range(len(lengths))]
        # The dataclass is frozen, so its fields can only be set like this.
        for name, value in {
            "sides": grids,
            "kernel_size": kernels if isinstance(kernel_size, list) else kernels[0],
            "dense_scales": dense_scales,
            "previous_scales": previous_scales,
            "windows": tuple(each[-1] for each in windows),
            "previous_windows": tuple(each[:-1] for each in windows),
            "offsets": (0, *ends[:-1]),
            "length": ends[-1],
        }.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        sides = ", ".join(str(g[0]) if len(set(g)) == 1 else _product(g) for g in self.sides)
        windows = ", ".join("dense" if k == g else _product(k) for k, g in zip(self.windows, self.sides))
        previous = f", previous_scales={self.previous_scales}" if self.previous_scales else ""
        return f"Pyramid(sides=[{sides}], windows=[{windows}]{previous}, length={self.length})"

    @property
    def num_scales(self) -> int:
        """Number of scales S."""
        return len(self.sides)

    def scale_slice(self, scale: int) -> slice:
        """Return the tokens of one scale inside the packed sequence."""
        first = self.offsets[scale]
        return slice(first, first + math.prod(self.sides[scale]))

    def select(self, scales: range) -> Pyramid:
        """Return the pyramid of these scales alone.

        Tokens keep their windows over all scales that remain if the range has no gaps. In a range with gaps
        they keep those over their own scale alone.

        Raises:
            TypeError, ValueError: `scales` is no range, is empty, falls, or leaves 0 .. num_scales - 1.
        """
        if not isinstance(scales, range):
            raise TypeError(f"scales must be a range, got {scales!r}")
        if not scales or scales.step < 1 or scales[0] < 0 or scales[-1] >= self.num_scales:
            raise ValueError(
                f"scales must be a rising range within 0 .. {self.num_scales - 1} with an entry, got {scales}"
            )
        kernels = self.kernel_size
        return Pyramid(
            [self.sides[scale] for scale in scales],
            [kernels[scale] for scale in scales] if isinstance(kernels, list) else kernels,
            sum(scale < self.dense_scales for scale in scales),
            min(self.previous_scales, len(scales) - 1) if scales.step == 1 else 0,
        )

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

    def block_mask(self, device: torch.device | str = "cpu") -> BlockMask:
        """Return the windows as the `block_mask` of PyTorch's `flex_attention`, on (B, H, L, D)."""
        from torch.nn.attention.flex_attention import create_block_mask  # imports the compiler

        mask_mod = self.neighborhood().mask_mod(device)
        return create_block_mask(mask_mod, None, None, self.length, self.length, device=device)

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
            keys = (*(1,) * (len(grid) - 1), before.num_keys + block.num_keys)
            block = before._replace(key_grid=keys, window=keys)
        blocks.append(block)
        whole_before = whole
    return blocks


def _product(sizes: Grid) -> str:
    return "x".join(map(str, sizes))


def _as_grids(sides: Iterable[Side]) -> tuple[Grid, ...]:
    sides = plain(sides)  # type: ignore[assignment]
    if not isinstance(sides, Iterable):
        raise TypeError(f"sides must be a sequence of ints or tuples of ints, got {sides!r}")
    sides = [plain(side) for side in sides]  # type: ignore[misc]
    if not sides:
        raise ValueError("sides must name at least one scale, got none")
    ranks = [len(side) for side in sides if isinstance(side, (tuple, list))]
    rank = ranks[0] if ranks else 2
    if not 1 <= rank <= MAX_RANK:
        raise ValueError(f"sides must have 1 to {MAX_RANK} axes, got {rank}")
    return tuple(as_grid(side, rank, "sides") for side in sides)
