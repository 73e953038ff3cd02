"""Which tokens each tile holds and loops over, and the mask features of each of them.

Whether a fixed token and a looped one of its tile see each other is the sign of a product of two short
vectors, one of each: 0 where they do, hugely negative where they do not.

    windowed part   one feature per row and one per column of the fixed tokens' rectangle; a fixed token is 1
                    at its row and its column, and a looped token is NEGATIVE at those that do not see it
    dense part      one feature, needed only where parts share a tile; a looped token is NEGATIVE at the
                    features of other parts

Fixed tokens that take part in several blocks (a scale and the scales next to it) have one set of features for
all of them, that of a windowed part if there is one.

Features follow the fixed tokens because a tile bounds how many rows and columns those have, whatever the
window: 16 for 8 x 8. Features of the looped tokens were 29 for 8 x 8 tiles and windows of 7.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from mvar_kernels import caches
from mvar_kernels.backends.rectangles import GridTile, key_tiles, query_tiles
from mvar_kernels.pyramid import Neighborhood, WindowBlock

# Exact in bfloat16, far below any score times any reasonable scale, and a sum of a few hundred is still
# finite in float32.
NEGATIVE = -(2.0**100)


class TilePart(NamedTuple):
    """A rectangle of one block's queries with the rectangle of its keys that they may see.

    Attributes:
        block: where both rectangles lie.
        tile: the rectangles.
        by_rows: whether the fixed tokens have a feature per row and column; else all share one.
    """

    block: WindowBlock
    tile: GridTile
    by_rows: bool

    @property
    def queries(self) -> np.ndarray:
        """Query tokens, row-major."""
        width, offset = self.block.query_grid[1], self.block.query_offset
        return _tokens(self.tile.query_rows, self.tile.query_cols, width, offset)

    @property
    def keys(self) -> np.ndarray:
        """Key tokens, row-major."""
        width, offset = self.block.key_grid[1], self.block.key_offset
        return _tokens(self.tile.key_rows, self.tile.key_cols, width, offset)

    def num_features(self, by: str) -> int:
        """Count the features; `by` is "query" or "key" (what is fixed)."""
        return sum(map(len, self._fixed(by))) if self.by_rows else 1

    def fixed_features(self, by: str) -> np.ndarray:
        """Return (fixed tokens, features): 1 at the token's row and at its column."""
        rows, cols = map(len, self._fixed(by))
        if not self.by_rows:
            return np.ones((rows * cols, 1), dtype=np.float32)
        token = np.arange(rows * cols)
        features = np.zeros((rows * cols, rows + cols), dtype=np.float32)
        features[token, token // cols] = 1
        features[token, rows + token % cols] = 1
        return features

    def looped_features(self, by: str) -> np.ndarray:
        """Return (looped tokens, features): NEGATIVE at the rows and columns that do not see the token."""
        if self.block.is_dense:
            looped = self.keys if by == "query" else self.queries
            return np.zeros((len(looped), self.num_features(by)), dtype=np.float32)
        rows = self._outside(0, self.tile.query_rows, self.tile.key_rows)
        cols = self._outside(1, self.tile.query_cols, self.tile.key_cols)
        if by == "query":
            rows, cols = rows.T, cols.T
        return np.concatenate([np.repeat(rows, len(cols), axis=0), np.tile(cols, (len(rows), 1))], axis=1)

    def _fixed(self, by: str) -> tuple[range, range]:
        tile = self.tile
        return (tile.query_rows, tile.query_cols) if by == "query" else (tile.key_rows, tile.key_cols)

    def _outside(self, axis: int, queries: range, keys: range) -> np.ndarray:
        """Return (queries, keys) along one axis: NEGATIVE outside of the window."""
        start = np.array(self.block.axis_starts(axis))[queries.start : queries.stop, None]
        key = np.arange(keys.start, keys.stop)[None]
        inside = (key >= start) & (key < start + self.block.window[axis])
        return np.where(inside, np.float32(0), np.float32(NEGATIVE))


def _tokens(rows: range, cols: range, width: int, offset: int) -> np.ndarray:
    row, col = np.arange(rows.start, rows.stop)[:, None], np.arange(cols.start, cols.stop)[None]
    return (row * width + col + offset).ravel()


class TileTokens(NamedTuple):
    """Tokens that stay together in one tile.

    Attributes:
        fixed: the tokens that stay in the program.
        parts: what they take part in, one per block; their features are the same.
    """

    fixed: np.ndarray
    parts: tuple[TilePart, ...]

    def num_features(self, by: str) -> int:
        return max((part.num_features(by) for part in self.parts), default=1)

    def num_looped(self, by: str) -> int:
        """Count the tokens that the tile loops over; `by` is "query" or "key" (what is fixed)."""
        return sum(len(part.keys if by == "query" else part.queries) for part in self.parts)


@caches.remembered(1024)
def unsupported(neighborhood: Neighborhood) -> str | None:
    """Return why there are no key tiles, or None, as for all that Pyramid and the public functions make."""
    for first, last, seeing in _stretches(neighborhood):
        grids = {(block.key_offset, block.key_grid) for block in seeing if not block.is_dense}
        if grids and (
            len(grids) > 1 or any(b.key_slice != slice(first, last) for b in seeing if not b.is_dense)
        ):
            return "a windowed block shares keys with a block of another grid of keys"
    return None


def _stretches(neighborhood: Neighborhood) -> list[tuple[int, int, list[WindowBlock]]]:
    """Cut the keys where a block begins or ends; return both ends and the blocks that see all in between."""
    bounds = {0, neighborhood.num_keys}
    for block in neighborhood.blocks:
        bounds |= {block.key_slice.start, block.key_slice.stop}
    return [
        (
            first,
            last,
            [b for b in neighborhood.blocks if b.key_slice.start <= first and last <= b.key_slice.stop],
        )
        for first, last in itertools.pairwise(sorted(bounds))
    ]


def tiles_of_queries(neighborhood: Neighborhood, height: int, width: int) -> list[TileTokens]:
    """Cut all queries into tiles of at most height x width tokens."""
    tiles = []
    for blocks in neighborhood.by_queries():
        if all(block.is_dense for block in blocks):
            # Runs of tokens fill tiles better than rectangles.
            blocks = tuple(map(_as_one_row, blocks))
            cuts, by_rows = [query_tiles(block, 1, height * width) for block in blocks], False
        else:
            cuts, by_rows = [query_tiles(block, height, width) for block in blocks], True
        for each in zip(*cuts):
            parts = tuple(TilePart(block, tile, by_rows) for block, tile in zip(blocks, each))
            tiles.append(TileTokens(parts[0].queries, parts))
    return tiles


def tiles_of_keys(neighborhood: Neighborhood, height: int, width: int) -> list[TileTokens]:
    """Cut all keys into tiles of at most height x width tokens; those of unseen keys have no parts."""
    tiles = []
    for first, last, seeing in _stretches(neighborhood):
        windowed = next((block for block in seeing if not block.is_dense), None)
        if windowed is None:
            for begin in range(first, last, height * width):
                keys = np.arange(begin, min(begin + height * width, last))
                tiles.append(TileTokens(keys, tuple(_dense_part(block, keys) for block in seeing)))
            continue
        # All windowed blocks slide over the same grid of keys, so they have the same rectangles of keys.
        cuts = [
            _all_queries(block, windowed, height, width)
            if block.is_dense
            else [TilePart(block, tile, True) for tile in key_tiles(block, height, width)]
            for block in seeing
        ]
        own = cuts[seeing.index(windowed)]
        tiles += [TileTokens(part.keys, parts) for part, parts in zip(own, zip(*cuts))]
    return tiles


def _all_queries(dense: WindowBlock, grid: WindowBlock, height: int, width: int) -> list[TilePart]:
    """Give all queries of a dense block to each tile of the keys of `grid`."""
    block, queries = _as_one_row(dense), range(dense.num_queries)
    return [
        TilePart(block, tile._replace(query_rows=range(1), query_cols=queries), True)
        for tile in key_tiles(grid, height, width)
    ]


def _as_one_row(block: WindowBlock) -> WindowBlock:
    keys = (1, block.num_keys)
    return WindowBlock(block.query_offset, (1, block.num_queries), block.key_offset, keys, keys)


def _dense_part(block: WindowBlock, keys: np.ndarray) -> TilePart:
    """Return all queries of a dense block with some of its keys."""
    first = int(keys[0]) - block.key_offset
    tile = GridTile(range(1), range(block.num_queries), range(1), range(first, first + len(keys)))
    return TilePart(_as_one_row(block), tile, False)
