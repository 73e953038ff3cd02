"""Tiles as data: the kernels know no geometry, they read lists of tokens and a mask in factors.

A tile has up to BM *fixed* tokens, which stay in the program, and a list of *looped* tokens in chunks of BN.
Forward and dq fix queries and loop over keys; dk, dv fix keys and loop over queries, so nothing is
accumulated across programs. Tokens come with mask features (`tile_parts.py`), whose products the tensor cores
add to the scores.

Padding: chunks repeat one of their own tokens, so that no foreign memory is read, and one more feature hides
it.

The reason: testing windows inside the kernel took three times as many instructions as this, most of them not
on tensor cores (docs/measurements.md). Parts that fit one tile together (the small scales of a pyramid) share
it. Where a window is too large for the features, the tile is split: every chunk is a smaller rectangle with
query features of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from mvar_kernels.backends.triton.tile_parts import (
    NEGATIVE,
    TilePart,
    TileTokens,
    tiles_of_keys,
    tiles_of_queries,
)
from mvar_kernels.pyramid import Neighborhood

MAX_FEATURES = 32
_FEW_FEATURES = 16
_SPLIT_COLS = 16


class Tables(NamedTuple):
    """The T tiles of one direction on a device, with C chunks and E features; equal masks are stored once.

    Attributes:
        fixed: (T, BM) tokens; the sequence's length where there is none.
        start: (T + 1) first chunk of each tile.
        looped: (C, BN) tokens.
        fixed_mask: (C) which of `fixed_masks` belongs to a chunk.
        looped_mask: (C) which of `looped_masks` belongs to a chunk.
        fixed_masks: (n, BM, E), each followed by its negative, for negative factors of cosine attention.
        looped_masks: (m, BN, E).
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
    def pointers(self) -> tuple[torch.Tensor, ...]:
        """The tensors, in the order of the kernels' arguments."""
        return self[:7]

    @property
    def num_tiles(self) -> int:
        return self.fixed.shape[0]

    @property
    def num_chunks(self) -> int:
        return self.looped.shape[0]

    @property
    def num_features(self) -> int:
        return self.fixed_masks.shape[2]


# Tensors that were created under inference mode could not be used by a later backward.
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
    """Build the tables of one direction.

    Args:
        neighborhood: who attends to whom.
        by: "query" or "key": which tokens are fixed.
        height: tiles have at most height x width fixed tokens.
        width: see height.
        chunk: looped tokens per chunk.
        dtype: type of the masks.
        device: where the tables go.
    """
    cut = tiles_of_queries if by == "query" else tiles_of_keys
    length = neighborhood.num_queries if by == "query" else neighborhood.num_keys
    builder = _Builder(by, height * width, chunk, length)
    for group in _pack(cut(neighborhood, height, width), by, height * width, chunk):
        builder.add(group)
    return builder.finish(dtype, device)


def _pack(tiles: list[TileTokens], by: str, size: int, chunk: int) -> list[list[TileTokens]]:
    """Group neighbours that together fit one tile, one chunk and the features."""
    groups: list[list[TileTokens]] = []
    room = (0, 0, 0)
    for tile in tiles:
        need = len(tile.fixed), tile.num_looped(by), tile.num_features
        if groups and all(have >= want for have, want in zip(room, need)):
            groups[-1].append(tile)
        else:
            groups.append([tile])
            # One feature is left for padding.
            room = (size, chunk, MAX_FEATURES - 1)
        room = (room[0] - need[0], room[1] - need[1], room[2] - need[2])
    return groups


def _to_device(device: torch.device, tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Copy to the device, so that any stream may read at any time."""
    if device.type == "cpu":
        return list(tensors)
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "a first call makes tables on the GPU, which a CUDA graph cannot capture: "
            "call once with these shapes before the capture"
        )
    # While `torch.compile` warms up a CUDA graph, what the calling thread allocates belongs to the graph, but
    # tables must outlive it. Another thread's allocations do.
    with ThreadPoolExecutor(1) as pool:
        return list(pool.map(lambda tensor: tensor.to(device), tensors))


class _Chunk(NamedTuple):
    """Looped tokens (BN) and the numbers of the two masks between them and the tile's fixed tokens."""

    tokens: np.ndarray
    fixed_mask: int
    looped_mask: int


class _Builder:
    """Collects tiles and their masks, and turns them into tables.

    Args:
        by: "query" or "key": which tokens are fixed.
        size: fixed tokens per tile.
        chunk: looped tokens per chunk.
        length: length of the sequence of fixed tokens.
    """

    def __init__(self, by: str, size: int, chunk: int, length: int) -> None:
        self.by = by
        self.size = size
        self.chunk = chunk
        self.length = length
        self.split = False
        self._tiles: list[tuple[np.ndarray, list[_Chunk]]] = []
        self._fixed_masks: dict[bytes, int] = {}
        self._looped_masks: dict[bytes, int] = {}

    def add(self, group: list[TileTokens]) -> None:
        """Add one tile that all of the group share."""
        fixed = np.concatenate([tokens.fixed for tokens in group])
        parts = [part for tokens in group for part in tokens.parts]
        needed = sum(tokens.num_features for tokens in group) + (self.by == "query")
        if self.by == "query" and needed > MAX_FEATURES:
            chunks = [
                self._chunk(fixed, *self._factors([TileTokens(fixed, (part,))]))
                for part in self._split(parts[0])
            ]
            self.split = True
        else:
            fixed_mask, looped_mask, tokens = self._factors(group)
            pieces = [slice(i, i + self.chunk) for i in range(0, len(tokens), self.chunk)]
            chunks = [self._chunk(fixed, fixed_mask, looped_mask[i], tokens[i]) for i in pieces]
        padded = np.pad(fixed, (0, self.size - len(fixed)), constant_values=self.length)
        self._tiles.append((padded, chunks))

    def _split(self, part: TilePart) -> list[TilePart]:
        """Cut the keys into rectangles whose rows and columns fit the features and whose keys fit a chunk."""
        block, tile = part
        cols = min(_SPLIT_COLS, len(tile.key_cols), self.chunk)
        rows = max(1, min(self.chunk // cols, MAX_FEATURES - 1 - cols))
        return [
            TilePart(block, tile._replace(key_rows=key_rows, key_cols=key_cols))
            for key_rows in _cuts(tile.key_rows, rows)
            for key_cols in _cuts(tile.key_cols, cols)
        ]

    def _factors(self, group: list[TileTokens]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the masks of the fixed and of the looped tokens, and the looped tokens.

        Each of the group owns a range of features, and its queries are NEGATIVE at all others.
        """
        total = sum(tokens.num_features for tokens in group)
        fixed_mask, looped_mask = [], [np.zeros((0, total), dtype=np.float32)]
        looped = [np.zeros(0, dtype=np.int64)]
        first = 0
        for tokens in group:
            own = slice(first, first + tokens.num_features)
            first += tokens.num_features
            foreign = np.full((1, total), NEGATIVE, dtype=np.float32)
            foreign[:, own] = 0
            fixed_keys = np.zeros((len(tokens.fixed), total), dtype=np.float32)
            for part in tokens.parts:
                queries = np.repeat(foreign, len(part.queries), axis=0)
                keys = np.zeros((len(part.keys), total), dtype=np.float32)
                queries[:, own] = part.query_features()
                keys[:, own] = part.key_features()
                if self.by == "query":
                    fixed_mask.append(queries)
                    looped_mask.append(keys)
                    looped.append(part.keys)
                else:
                    # The same for every part, as keys have several parts only where all of them are dense.
                    fixed_keys = keys
                    looped_mask.append(queries)
                    looped.append(part.queries)
            if self.by == "key":
                fixed_mask.append(fixed_keys)
        return np.concatenate(fixed_mask), np.concatenate(looped_mask), np.concatenate(looped)

    def _chunk(
        self, fixed: np.ndarray, fixed_mask: np.ndarray, looped_mask: np.ndarray, tokens: np.ndarray
    ) -> _Chunk:
        padding, features = self.chunk - len(tokens), fixed_mask.shape[1]
        fixed_mask = np.pad(fixed_mask, ((0, self.size - len(fixed)), (0, 1)))
        looped_mask = np.pad(looped_mask, ((0, padding), (0, 1)))
        if self.by == "query":
            fixed_mask[:, features] = NEGATIVE
            looped_mask[len(tokens) :, features] = 1
        else:
            # Every key is 1 at some feature already, so padded queries need no feature of their own.
            looped_mask[len(tokens) :, :features] = NEGATIVE
            fixed_mask, looped_mask = fixed_mask[:, :features], looped_mask[:, :features]
        return _Chunk(
            np.pad(tokens, (0, padding), mode="edge"),
            _number_of(fixed_mask, self._fixed_masks),
            _number_of(looped_mask, self._looped_masks),
        )

    def finish(self, dtype: torch.dtype, device: torch.device) -> Tables:
        """Return the tables of all tiles that were added."""
        # Long tiles first: the short ones fill the tail of the launch.
        tiles = sorted(self._tiles, key=lambda tile: -len(tile[1]))
        chunks = [chunk for _, own in tiles for chunk in own]
        starts = np.concatenate([[0], np.cumsum([len(own) for _, own in tiles])])
        fixed_masks = _stacked(self._fixed_masks, self.size)
        looped_masks = _stacked(self._looped_masks, self.chunk)
        # With half of the features the products of the masks cost half.
        few = not (fixed_masks[:, :, _FEW_FEATURES:].any() or looped_masks[:, :, _FEW_FEATURES:].any())
        used = slice(0, _FEW_FEATURES if few else MAX_FEATURES)
        both_signs = np.stack([fixed_masks, -fixed_masks], axis=1).reshape(-1, self.size, MAX_FEATURES)
        fixed, start, looped, fixed_mask, looped_mask, fixed_masks_on, looped_masks_on = _to_device(
            device,
            (
                _ints([fixed for fixed, _ in tiles]),
                _ints(starts),
                # A launch without chunks reads none of these, but needs a pointer.
                _ints([chunk.tokens for chunk in chunks] or np.zeros((1, self.chunk))),
                # Each fixed mask is stored with its negative behind it.
                _ints([2 * chunk.fixed_mask for chunk in chunks] or [0]),
                _ints([chunk.looped_mask for chunk in chunks] or [0]),
                torch.from_numpy(np.ascontiguousarray(both_signs[:, :, used])).to(dtype),
                torch.from_numpy(np.ascontiguousarray(looped_masks[:, :, used])).to(dtype),
            ),
        )
        return Tables(
            fixed, start, looped, fixed_mask, looped_mask, fixed_masks_on, looped_masks_on, self.split
        )


def _cuts(keys: range, step: int) -> list[range]:
    return [keys[i : i + step] for i in range(0, len(keys), step)]


def _ints(values: object) -> torch.Tensor:
    return torch.as_tensor(np.array(values, dtype=np.int32))


def _number_of(mask: np.ndarray, known: dict[bytes, int]) -> int:
    """Return the number of a mask, a new one if it is not among the known."""
    padded = np.zeros((mask.shape[0], MAX_FEATURES), dtype=np.float32)
    padded[:, : mask.shape[1]] = mask
    return known.setdefault(padded.tobytes(), len(known))


def _stacked(masks: dict[bytes, int], rows: int) -> np.ndarray:
    """Return (n, rows, MAX_FEATURES), with one mask of zeros if there are none."""
    if not masks:
        return np.zeros((1, rows, MAX_FEATURES), dtype=np.float32)
    return np.stack([np.frombuffer(raw, dtype=np.float32).reshape(rows, MAX_FEATURES) for raw in masks])
