"""Tiles as data: the kernels know no geometry, they read lists of tokens and a mask in factors.

A tile has up to BM *fixed* tokens, which stay in the program, and a list of *looped* tokens in chunks of BN. Forward and dq fix queries and
loop over keys; dk, dv fix keys and loop over queries, so nothing is accumulated across programs. Whether a query sees a key of the tile is the
sign of a product of two short vectors, one of each: 0 where it does, hugely negative where not, which the tensor cores add to the scores.

    features of a windowed part   one per key row and one per key column of the part; a key is 1 at its row and its column, a query is
                                  NEGATIVE at the rows and columns outside its window
    features of a dense part      one, and only where parts share a tile; a query is NEGATIVE at the features of the other parts
    padding                       chunks repeat one of their own tokens, so that no foreign memory is read, and one more feature hides it

Why so: testing windows inside the kernel took 1,055 instructions per 64 x 64 scores on sm_90, of which 8 were tensor-core; this takes 324.
Parts that fit one tile together (the small scales of a pyramid) share it: the 256 px pyramid has 13 tiles and 22 chunks a head, not 19 and 30.
Where a window is too large for 32 features the tile is split: every chunk is a smaller rectangle with query features of its own.
"""

from __future__ import annotations

import functools
import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from mvar_kernels.backends.common.rectangles import GridTile, key_tiles, query_tiles
from mvar_kernels.pyramid import Neighborhood, WindowBlock

# In bfloat16 exact, far below any score times any reasonable scale, and a sum of a few hundred still finite in float32.
NEGATIVE = -(2.0**100)
MAX_FEATURES = 32
_SPLIT_COLS = 16


class Part(NamedTuple):
    """A rectangle of one block's queries with the rectangle of its keys that they may see."""

    block: WindowBlock
    tile: GridTile

    @property
    def queries(self) -> np.ndarray:
        return _tokens(
            self.tile.query_rows, self.tile.query_cols, self.block.query_grid[1], self.block.query_offset
        )

    @property
    def keys(self) -> np.ndarray:
        return _tokens(self.tile.key_rows, self.tile.key_cols, self.block.key_grid[1], self.block.key_offset)

    @property
    def num_features(self) -> int:
        return 1 if self.block.is_dense else len(self.tile.key_rows) + len(self.tile.key_cols)

    def key_features(self) -> np.ndarray:
        """(keys, features): 1 at the key's row and column."""
        rows, cols = len(self.tile.key_rows), len(self.tile.key_cols)
        if self.block.is_dense:
            return np.ones((rows * cols, 1), dtype=np.float32)
        place = np.arange(rows * cols)
        out = np.zeros((rows * cols, rows + cols), dtype=np.float32)
        out[place, place // cols] = 1
        out[place, rows + place % cols] = 1
        return out

    def query_features(self) -> np.ndarray:
        """(queries, features): NEGATIVE at the rows and columns that the query does not see."""
        height, width = len(self.tile.query_rows), len(self.tile.query_cols)
        if self.block.is_dense:
            return np.zeros((height * width, 1), dtype=np.float32)
        rows = self._outside(0, self.tile.query_rows, self.tile.key_rows)
        cols = self._outside(1, self.tile.query_cols, self.tile.key_cols)
        return np.concatenate([np.repeat(rows, width, axis=0), np.tile(cols, (height, 1))], axis=1)

    def _outside(self, axis: int, queries: range, keys: range) -> np.ndarray:
        start = np.array(self.block.axis_starts(axis))[queries.start : queries.stop, None]
        key = np.arange(keys.start, keys.stop)[None]
        inside = (key >= start) & (key < start + self.block.window[axis])
        return np.where(inside, np.float32(0), np.float32(NEGATIVE))


def _tokens(rows: range, cols: range, width: int, offset: int) -> np.ndarray:
    return (
        np.arange(rows.start, rows.stop)[:, None] * width + np.arange(cols.start, cols.stop)[None] + offset
    ).ravel()


class Item(NamedTuple):
    """Fixed tokens and the parts that they take part in; several parts only where dense blocks share keys (VAR's mask)."""

    fixed: np.ndarray
    parts: tuple[Part, ...]


class Tables(NamedTuple):
    """One direction's tiles on a device: T tiles, C chunks, E features.

    fixed (T, BM): tokens, the sequence's length where there is none. start (T + 1): first chunk of each tile. looped (C, BN): tokens.
    fixed_mask, looped_mask (C): which of fixed_masks (n, BM, E) and looped_masks (m, BN, E) belongs to a chunk; equal ones are stored once.
    split: whether chunks of one tile differ in their fixed mask.
    """

    fixed: torch.Tensor
    start: torch.Tensor
    looped: torch.Tensor
    fixed_mask: torch.Tensor
    looped_mask: torch.Tensor
    fixed_masks: torch.Tensor
    looped_masks: torch.Tensor
    split: bool

    @property
    def num_tiles(self) -> int:
        return self.fixed.shape[0]

    @property
    def num_chunks(self) -> int:
        return self.looped.shape[0]

    @property
    def num_features(self) -> int:
        return self.fixed_masks.shape[2]


@functools.lru_cache(maxsize=128)
@torch.inference_mode(False)
def tables(
    neighborhood: Neighborhood,
    by: str,
    height: int,
    width: int,
    chunk: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tables:
    """Tiles of at most height x width fixed tokens and chunks of `chunk` looped ones; `by` is "query" or "key" (what is fixed)."""
    size = height * width
    items = (
        _query_items(neighborhood, height, width)
        if by == "query"
        else _key_items(neighborhood, height, width)
    )
    builder = _Builder(by, size, chunk, neighborhood.num_queries if by == "query" else neighborhood.num_keys)
    for group in _pack(items, by, size, chunk):
        builder.add(group)
    return builder.finish(dtype, device)


def _on(device: torch.device, tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Copies on the device that any stream may read, at any time.

    In a thread of its own: while `torch.compile` warms up a CUDA graph, what the calling thread allocates belongs to the graph, and tables stay.
    """
    if device.type == "cpu":
        return tensors
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "a first call makes tables on the GPU, which a CUDA graph cannot capture: call once with these shapes before the capture"
        )
    with ThreadPoolExecutor(1) as pool:
        return tuple(pool.map(lambda tensor: tensor.to(device), tensors))


@functools.lru_cache(maxsize=1024)
def unsupported(neighborhood: Neighborhood) -> str | None:
    """Why key tiles cannot be made, or None; everything that Pyramid and the public functions produce can."""
    for block in neighborhood.blocks:
        if not block.is_dense:
            for other in neighborhood.blocks:
                ends = block.key_offset + block.num_keys, other.key_offset + other.num_keys
                if other is not block and block.key_offset < ends[1] and other.key_offset < ends[0]:
                    return "a windowed block shares keys with another block"
    return None


def _query_items(neighborhood: Neighborhood, height: int, width: int) -> list[Item]:
    items = []
    for block in neighborhood.blocks:
        parts = [Part(flat, tile) for flat, tile in _cut(block, height, width, query_tiles)]
        items += [Item(part.queries, (part,)) for part in parts]
    return items


def _key_items(neighborhood: Neighborhood, height: int, width: int) -> list[Item]:
    items = []
    bounds = {0, neighborhood.num_keys}
    for block in neighborhood.blocks:
        bounds |= {block.key_offset, block.key_offset + block.num_keys}
    edges = sorted(bounds)
    for first, last in itertools.pairwise(edges):
        seers = [
            b for b in neighborhood.blocks if b.key_offset <= first and last <= b.key_offset + b.num_keys
        ]
        windowed = [b for b in seers if not b.is_dense]
        if windowed:
            items += [
                Item(part.keys, (part,))
                for part in (Part(b, t) for b, t in _cut(windowed[0], height, width, key_tiles))
            ]
            continue
        for begin in range(first, last, height * width):
            keys = np.arange(begin, min(begin + height * width, last))
            items.append(Item(keys, tuple(_dense_part(block, keys) for block in seers)))
    return items


def _cut(block: WindowBlock, height: int, width: int, cut):  # type: ignore[no-untyped-def]
    """Windowed blocks in rectangles; dense ones in runs of their tokens, which fill tiles better."""
    if not block.is_dense:
        return [(block, tile) for tile in cut(block, height, width)]
    flat = _flat(block)
    return [(flat, tile) for tile in cut(flat, 1, height * width)]


def _flat(block: WindowBlock) -> WindowBlock:
    keys = (1, block.num_keys)
    return WindowBlock(block.query_offset, (1, block.num_queries), block.key_offset, keys, keys)


def _dense_part(block: WindowBlock, keys: np.ndarray) -> Part:
    first = int(keys[0]) - block.key_offset
    return Part(
        _flat(block), GridTile(range(1), range(block.num_queries), range(1), range(first, first + len(keys)))
    )


def _looped(item: Item, by: str) -> int:
    return sum(len(part.keys if by == "query" else part.queries) for part in item.parts)


def _features(item: Item) -> int:
    return max((part.num_features for part in item.parts), default=1)


def _pack(items: list[Item], by: str, size: int, chunk: int) -> list[list[Item]]:
    """Neighbouring items that fit one tile, one chunk and the features share a tile."""
    groups: list[list[Item]] = []
    room = (0, 0, 0)
    for item in items:
        need = len(item.fixed), _looped(item, by), _features(item)
        if groups and all(have >= want for have, want in zip(room, need)):
            groups[-1].append(item)
        else:
            groups.append([item])
            room = (size, chunk, MAX_FEATURES - 1)
        room = (room[0] - need[0], room[1] - need[1], room[2] - need[2])
    return groups


class _Builder:
    """Collects tiles; equal masks are stored once."""

    def __init__(self, by: str, size: int, chunk: int, length: int) -> None:
        self.by = by
        self.size = size
        self.chunk = chunk
        self.length = length
        self.tiles: list[tuple[np.ndarray, list[tuple[np.ndarray, int, int]]]] = []
        self.masks: tuple[dict[bytes, int], dict[bytes, int]] = ({}, {})
        self.split = False

    def add(self, group: list[Item]) -> None:
        fixed = np.concatenate([item.fixed for item in group])
        parts = [part for item in group for part in item.parts]
        needed = sum(_features(item) for item in group) + (self.by == "query")
        if self.by == "query" and needed > MAX_FEATURES:
            chunks = [
                self._chunk(fixed, *self._factors([Item(fixed, (part,))])) for part in self._split(parts[0])
            ]
            self.split = True
        else:
            fixed_mask, looped_mask, tokens = self._factors(group)
            pieces = range(0, len(tokens), self.chunk)
            chunks = [
                self._chunk(fixed, fixed_mask, looped_mask[i : i + self.chunk], tokens[i : i + self.chunk])
                for i in pieces
            ]
        self.tiles.append((np.pad(fixed, (0, self.size - len(fixed)), constant_values=self.length), chunks))

    def _split(self, part: Part) -> list[Part]:
        """Key rectangles whose rows and columns fit the features and whose keys fit a chunk."""
        block, tile = part
        cols = min(_SPLIT_COLS, len(tile.key_cols), self.chunk)
        rows = max(1, min(self.chunk // cols, MAX_FEATURES - 1 - cols))
        return [
            Part(
                block,
                GridTile(
                    tile.query_rows, tile.query_cols, tile.key_rows[r : r + rows], tile.key_cols[c : c + cols]
                ),
            )
            for r in range(0, len(tile.key_rows), rows)
            for c in range(0, len(tile.key_cols), cols)
        ]

    def _factors(self, group: list[Item]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mask factors of the fixed and of the looped tokens, and the looped tokens; each item owns a range of features."""
        widths = [_features(item) for item in group]
        total = sum(widths)
        fixed_mask, looped_mask, tokens, first = [], [], [], 0
        for item, width in zip(group, widths):
            own = slice(first, first + width)
            first += width
            foreign = np.full((1, total), NEGATIVE, dtype=np.float32)
            foreign[:, own] = 0
            keys_once = None
            for part in item.parts:
                queries = np.repeat(foreign, len(part.queries), axis=0)
                keys = np.zeros((len(part.keys), total), dtype=np.float32)
                queries[:, own] = part.query_features()
                keys[:, own] = part.key_features()
                keys_once = keys
                looped_mask.append(keys if self.by == "query" else queries)
                tokens.append(part.keys if self.by == "query" else part.queries)
                if self.by == "query":
                    fixed_mask.append(queries)
            if self.by == "key":
                fixed_mask.append(
                    np.zeros((len(item.fixed), total), dtype=np.float32) if keys_once is None else keys_once
                )
        looped = np.concatenate(looped_mask) if looped_mask else np.zeros((0, total), dtype=np.float32)
        return (
            np.concatenate(fixed_mask),
            looped,
            np.concatenate(tokens) if tokens else np.zeros(0, dtype=np.int64),
        )

    def _chunk(
        self, fixed: np.ndarray, fixed_mask: np.ndarray, looped_mask: np.ndarray, tokens: np.ndarray
    ) -> tuple[np.ndarray, int, int]:
        padding, features = self.chunk - len(tokens), fixed_mask.shape[1]
        fixed_mask = np.pad(fixed_mask, ((0, self.size - len(fixed)), (0, 1)))
        looped_mask = np.pad(looped_mask, ((0, padding), (0, 1)))
        if self.by == "query":
            fixed_mask[:, features] = NEGATIVE
            looped_mask[len(tokens) :, features] = 1
        else:  # every key is 1 at some feature already, so padded queries need no feature of their own
            looped_mask[len(tokens) :, :features] = NEGATIVE
            fixed_mask, looped_mask = fixed_mask[:, :features], looped_mask[:, :features]
        return (
            np.pad(tokens, (0, padding), mode="edge"),
            self._store(0, fixed_mask),
            self._store(1, looped_mask),
        )

    def _store(self, side: int, mask: np.ndarray) -> int:
        full = np.zeros((mask.shape[0], MAX_FEATURES), dtype=np.float32)
        full[:, : mask.shape[1]] = mask
        return self.masks[side].setdefault(full.tobytes(), len(self.masks[side]))

    def finish(self, dtype: torch.dtype, device: torch.device) -> Tables:
        # Long tiles first: the short ones fill the tail of the launch.
        tiles = sorted(self.tiles, key=lambda tile: -len(tile[1]))
        chunks = [chunk for _, own in tiles for chunk in own]
        counts = [len(own) for _, own in tiles]
        used = max((self._used(side) for side in (0, 1)), default=16)
        features = 16 if used <= 16 else MAX_FEATURES

        def ints(values: object) -> torch.Tensor:
            return torch.as_tensor(np.array(values, dtype=np.int32))

        def masks(side: int, rows: int) -> torch.Tensor:
            stored = [
                np.frombuffer(raw, dtype=np.float32).reshape(rows, MAX_FEATURES)[:, :features]
                for raw in self.masks[side]
            ]
            return torch.from_numpy(
                np.stack(stored) if stored else np.zeros((1, rows, features), np.float32)
            ).to(dtype)

        fixed_masks = masks(0, self.size)
        made = (
            ints([fixed for fixed, _ in tiles]),
            ints(np.concatenate([[0], np.cumsum(counts)])),
            ints([tokens for tokens, _, _ in chunks] or np.zeros((1, self.chunk))),
            ints([2 * mask for _, mask, _ in chunks] or [0]),
            ints([mask for _, _, mask in chunks] or [0]),
            torch.stack([fixed_masks, -fixed_masks], dim=1).flatten(0, 1),
            masks(1, self.chunk),
        )
        return Tables(*_on(device, made), self.split)

    def _used(self, side: int) -> int:
        last = 0
        for raw in self.masks[side]:
            columns = np.frombuffer(raw, dtype=np.float32).reshape(-1, MAX_FEATURES).any(axis=0).nonzero()[0]
            last = max(last, int(columns[-1]) + 1 if len(columns) else 0)
        return last
