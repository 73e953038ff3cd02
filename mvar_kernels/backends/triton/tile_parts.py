"""Which tokens each tile holds and loops over, and the mask features of each of them.

Whether a fixed token and a looped one of its tile see each other is the sign of a product of two short
vectors, one of each: 0 where they do, hugely negative where they do not.

    windowed part   along each axis one feature per place of the fixed tokens' box; a fixed token is 1 at its
                    place of every axis, and a looped token is NEGATIVE at the places that do not see it. An
                    axis with one place needs none: nothing that is looped over is hidden from it
    dense part      one feature, needed only where parts share a tile; a looped token is NEGATIVE at the
                    features of other parts

Fixed tokens that take part in several blocks (a scale and the scales next to it) have one set of features for
all of them, that of a windowed part if there is one.

Features follow the fixed tokens because a tile bounds how many places those have, whatever the window: 16 for
8 x 8, 12 for 4 x 4 x 4. Features of the looped tokens were 29 for 8 x 8 tiles and windows of 7.

Tiles that differ in their tokens alone, such as all inside a grid, are made together, by array operations.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mvar_kernels import caches
from mvar_kernels.backends.rectangles import AxisCut, key_cuts, query_cuts
from mvar_kernels.pyramid import Grid, Neighborhood, WindowBlock

# Exact in bfloat16, far below any score times any reasonable scale, and a sum of a few hundred is still
# finite in float32.
NEGATIVE = -(2.0**100)
# The tensor cores multiply 16 features at a time.
FEATURES = 16
MAX_FEATURES = 32
# What a program executes outside its loop, in looped tokens (docs/counts.md).
_TOKENS_PER_PROGRAM = 128


class Tiles(NamedTuple):
    """T tiles that differ in nothing but their tokens, with F features.

    Attributes:
        fixed: (T, n) tokens that stay in the program.
        looped: (T, m) tokens that it loops over, those of one block after the other.
        fixed_features: (n, F).
        looped_features: (m, F).
        numbers: (T,) the place of each tile in the order of the sequence.
    """

    fixed: np.ndarray
    looped: np.ndarray
    fixed_features: np.ndarray
    looped_features: np.ndarray
    numbers: np.ndarray


@caches.remembered(1024)
def unsupported(neighborhood: Neighborhood) -> str | None:
    """Return why there are no key tiles, or None, as for all that Pyramid and the public functions make."""
    for keys, seeing in _by_keys(neighborhood):
        grids = {(block.key_offset, block.key_grid) for block in seeing if not block.is_dense}
        if grids and (len(grids) > 1 or any(b.key_slice != keys for b in seeing if not b.is_dense)):
            return "a windowed block shares keys with a block of another grid of keys"
    return None


def _by_queries(neighborhood: Neighborhood) -> list[tuple[slice, Sequence[WindowBlock]]]:
    """Return the queries of each grid, and the blocks in which they are."""
    return [(blocks[0].query_slice, blocks) for blocks in neighborhood.by_queries()]


def _by_keys(neighborhood: Neighborhood) -> list[tuple[slice, Sequence[WindowBlock]]]:
    """Cut the keys where a block begins or ends; return each stretch, and the blocks that see all of it."""
    bounds = {0, neighborhood.num_keys}
    for block in neighborhood.blocks:
        bounds |= {block.key_slice.start, block.key_slice.stop}
    return [
        (
            slice(first, last),
            [b for b in neighborhood.blocks if b.key_slice.start <= first and last <= b.key_slice.stop],
        )
        for first, last in itertools.pairwise(sorted(bounds))
    ]


def tiles_of(neighborhood: Neighborhood, by: str, height: int, width: int) -> list[Tiles]:
    """Cut all fixed tokens into tiles of at most height x width; those that nobody sees loop over none.

    Args:
        neighborhood: who attends to whom.
        by: "query" or "key": which tokens are fixed.
        height: rows of a tile in two dimensions.
        width: its columns.
    """
    found: list[Tiles] = []
    count = 0
    for fixed, blocks in (_by_queries if by == "query" else _by_keys)(neighborhood):
        windowed = [block for block in blocks if not block.is_dense]
        if windowed:
            shape = _shape_of_tiles(windowed, by, height, width)
            made = list(_grid_tiles(blocks, windowed, by, shape))
        else:
            made = list(_run_tiles(fixed, blocks, by, height * width))
        found += [tiles._replace(numbers=tiles.numbers + count) for tiles in made]
        count += sum(len(tiles.numbers) for tiles in made)
    return found


def _run_tiles(fixed: slice, blocks: Sequence[WindowBlock], by: str, size: int) -> Iterator[Tiles]:
    """Cut tokens that see all there is into runs, which fill tiles better than boxes."""
    looped = [_all_looped(block, by) for block in blocks]
    all_looped = np.concatenate([np.zeros(0, dtype=np.int32), *looped])
    tokens = np.arange(fixed.start, fixed.stop)
    full = len(tokens) // size * size
    for first, last in ((0, full), (full, len(tokens))):
        if first < last:
            runs = tokens[first:last].reshape(-1, min(size, last - first))
            yield Tiles(
                runs,
                np.broadcast_to(all_looped, (len(runs), len(all_looped))),
                np.ones((runs.shape[1], 1), dtype=np.float32),
                np.zeros((len(all_looped), 1), dtype=np.float32),
                first // size + np.arange(len(runs)),
            )


def _all_looped(block: WindowBlock, by: str) -> np.ndarray:
    tokens = block.key_slice if by == "query" else block.query_slice
    return np.arange(tokens.start, tokens.stop, dtype=np.int32)


def _shape_of_tiles(windowed: Sequence[WindowBlock], by: str, height: int, width: int) -> Grid:
    """Return the places per axis of a tile: those that see the fewest tokens, where there is a choice."""
    grid = windowed[0].query_grid if by == "query" else windowed[0].key_grid
    size = height * width
    if len(grid) == 2:
        return height, width
    if len(grid) == 1:
        return (min(size, MAX_FEATURES),)
    powers = [1 << bit for bit in range(size.bit_length())]
    shapes = [shape for shape in itertools.product(powers, repeat=len(grid)) if math.prod(shape) == size]
    fitting = [shape for shape in shapes if sum(side for side in shape if side > 1) <= FEATURES]

    def cost(shape: Grid) -> int:
        cuts = [[_cuts(block, axis, side, by) for axis, side in enumerate(shape)] for block in windowed]
        looped = sum(math.prod(sum(len(_looped(cut, by)) for cut in axis) for axis in axes) for axes in cuts)
        return looped + _TOKENS_PER_PROGRAM * math.prod(map(len, cuts[0]))

    return min(fitting, key=cost)


def _cuts(block: WindowBlock, axis: int, step: int, by: str) -> tuple[AxisCut, ...]:
    return (query_cuts if by == "query" else key_cuts)(block, axis, step)


def _fixed(cut: AxisCut, by: str) -> range:
    return cut.queries if by == "query" else cut.keys


def _looped(cut: AxisCut, by: str) -> range:
    return cut.keys if by == "query" else cut.queries


class _AxisClass(NamedTuple):
    """Cuts of one axis that differ in nothing but where they are.

    Attributes:
        numbers: (c,) which cuts.
        fixed: (c, f) the fixed tokens' shares of the axis in their number in the sequence.
        looped: per windowed block (c, l), the same of the looped ones.
        hidden: per windowed block (l, f or 0), NEGATIVE where fixed and looped do not see each other.
    """

    numbers: np.ndarray
    fixed: np.ndarray
    looped: list[np.ndarray]
    hidden: list[np.ndarray]


def _grid_tiles(
    blocks: Sequence[WindowBlock], windowed: Sequence[WindowBlock], by: str, shape: Grid
) -> Iterator[Tiles]:
    """Cut a grid of fixed tokens into boxes; all windowed blocks have the same grid of them."""
    axes = [_axis_classes(windowed, by, axis, side) for axis, side in enumerate(shape)]
    counts = [sum(len(each.numbers) for each in axis) for axis in axes]
    first = windowed[0]
    offset = first.query_offset if by == "query" else first.key_offset
    for classes in itertools.product(*axes):
        fixed = _outer_sum(offset, [each.fixed for each in classes])
        fixed_features = _side_by_side(
            [np.eye(each.fixed.shape[1], each.hidden[0].shape[1], dtype=np.float32) for each in classes]
        )
        looped, looped_features = [], []
        for block in blocks:
            if block.is_dense:
                tokens = _all_looped(block, by)
                looped.append(np.broadcast_to(tokens, (len(fixed), len(tokens))))
                looped_features.append(np.zeros((len(tokens), fixed_features.shape[1]), dtype=np.float32))
            else:
                i = windowed.index(block)
                begin = block.key_offset if by == "query" else block.query_offset
                looped.append(_outer_sum(begin, [each.looped[i] for each in classes]))
                looped_features.append(_side_by_side([each.hidden[i] for each in classes]))
        if not fixed_features.shape[1]:
            # Padding has to be hidden from something.
            fixed_features = np.ones((fixed.shape[1], 1), dtype=np.float32)
            looped_features = [np.zeros((len(each), 1), dtype=np.float32) for each in looped_features]
        numbers = np.ravel_multi_index(np.ix_(*(each.numbers for each in classes)), counts).ravel()
        all_looped = looped[0] if len(looped) == 1 else np.concatenate(looped, axis=1)
        yield Tiles(fixed, all_looped, fixed_features, np.concatenate(looped_features), numbers)


def _axis_classes(windowed: Sequence[WindowBlock], by: str, axis: int, step: int) -> list[_AxisClass]:
    """Cut one axis, and bring cuts of the same windows together."""
    classes: dict[tuple[object, ...], tuple[list[int], list[np.ndarray]]] = {}
    cuts = list(zip(*(_cuts(block, axis, step, by) for block in windowed)))
    for number, of_blocks in enumerate(cuts):
        inside = [_inside(block, axis, cut, by) for block, cut in zip(windowed, of_blocks)]
        key = tuple((each.shape, each.tobytes()) for each in inside)
        classes.setdefault(key, ([], inside))[0].append(number)
    found = []
    for numbers, inside in classes.values():
        fixed_tokens = _axis_tokens(windowed[0], axis, by == "query")
        # With one place nothing is hidden, so it has no feature.
        single = inside[0].shape[1] == 1
        found.append(
            _AxisClass(
                np.array(numbers),
                np.stack([fixed_tokens[_span(_fixed(cuts[number][0], by))] for number in numbers]),
                [
                    np.stack(
                        [
                            _axis_tokens(block, axis, by != "query")[_span(_looped(cuts[number][i], by))]
                            for number in numbers
                        ]
                    )
                    for i, block in enumerate(windowed)
                ],
                [
                    np.where(each, np.float32(0), np.float32(NEGATIVE))[:, : 0 if single else None]
                    for each in inside
                ],
            )
        )
    return found


def _span(places: range) -> slice:
    return slice(places.start, places.stop)


def _inside(block: WindowBlock, axis: int, cut: AxisCut, by: str) -> np.ndarray:
    """Return (looped, fixed) bool along one axis: whether the key is in the query's window."""
    windows, keys = block.axis(axis), np.arange(cut.keys.start, cut.keys.stop)
    starts, stops = windows.starts[_span(cut.queries), None], windows.stops[_span(cut.queries), None]
    inside = (keys >= starts) & (keys < stops)
    return inside.T if by == "query" else inside


def _axis_tokens(block: WindowBlock, axis: int, queries: bool) -> np.ndarray:
    """Return what each place of an axis adds to the number of its token in the sequence."""
    grid = block.query_grid if queries else block.key_grid
    order = block.axis(axis).order if queries else block.key_order(axis)
    # Half the memory of 64 bits, and what the tables hold.
    return (order * math.prod(grid[axis + 1 :])).astype(np.int32)


def _outer_sum(offset: int, per_axis: Sequence[np.ndarray]) -> np.ndarray:
    """Return (product of c, product of l): the offset, and all sums of one (c, l) per axis."""
    total = per_axis[0] + np.int32(offset)
    for more in per_axis[1:]:
        summed = total[:, None, :, None] + more[None, :, None, :]
        total = summed.reshape(len(total) * len(more), -1)
    return total


def _side_by_side(per_axis: Sequence[np.ndarray]) -> np.ndarray:
    """Return (product of l, sum of f), all combinations of rows side by side, of one (l, f) per axis."""
    lengths = [len(each) for each in per_axis]
    columns = []
    for axis, each in enumerate(per_axis):
        shape = [1] * len(lengths)
        shape[axis] = len(each)
        rows = np.broadcast_to(each.reshape(*shape, each.shape[1]), (*lengths, each.shape[1]))
        columns.append(rows.reshape(math.prod(lengths), each.shape[1]))
    return np.concatenate(columns, axis=1)
