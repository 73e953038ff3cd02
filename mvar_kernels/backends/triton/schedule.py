"""Tiles as data: the kernels know no geometry, they read lists of tokens and a mask in factors.

A tile has up to BM *fixed* tokens, which stay in the program, and a list of *looped* tokens in chunks of BN.
Forward and dq fix queries and loop over keys; dk, dv fix keys and loop over queries, so nothing is
accumulated across programs. Tokens come with mask features (`tile_parts.py`), whose products the tensor cores
add to the scores.

Padding: chunks repeat one of their own tokens, so that no foreign memory is read, hidden from all features.

The reason: testing windows inside the kernel took three times as many instructions as this, most of them not
on tensor cores (docs/measurements.md). Parts that fit one tile together (the small scales of a pyramid, the
edges of larger ones) share it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from mvar_kernels import caches
from mvar_kernels.backends.triton.tile_parts import (
    NEGATIVE,
    TileTokens,
    tiles_of_keys,
    tiles_of_queries,
)
from mvar_kernels.pyramid import Neighborhood

# The tensor cores multiply 16 features at a time. Tiles of more than 8 x 8 need more than 16.
FEATURES = 16
MAX_FEATURES = 32


class Tables(NamedTuple):
    """The T tiles of one direction on a device, with C chunks and E features; equal masks are stored once.

    Attributes:
        fixed: (T, BM) tokens; the sequence's length where there is none.
        start: (T + 1) first chunk of each tile.
        looped: (C, BN) tokens.
        fixed_mask: (T) which of `fixed_masks` belongs to a tile.
        looped_mask: (C) which of `looped_masks` belongs to a chunk.
        fixed_masks: (n, BM, E), each followed by its negative, for negative factors of cosine attention.
        looped_masks: (m, BN, E).
    """

    fixed: torch.Tensor
    start: torch.Tensor
    looped: torch.Tensor
    fixed_mask: torch.Tensor
    looped_mask: torch.Tensor
    fixed_masks: torch.Tensor
    looped_masks: torch.Tensor

    @property
    def pointers(self) -> tuple[torch.Tensor, ...]:
        """The tensors, in the order of the kernels' arguments."""
        return tuple(self)

    @property
    def num_tiles(self) -> int:
        return self.fixed.shape[0]

    @property
    def num_chunks(self) -> int:
        return self.looped.shape[0]

    @property
    def num_features(self) -> int:
        return self.fixed_masks.shape[2]


def _not_while_capturing(*arguments: object) -> None:
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "a first call makes tables on the GPU, which a CUDA graph cannot capture: "
            "call once with these shapes before the capture"
        )


@caches.tables(64 << 20, check=_not_while_capturing)
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

    Raises:
        ValueError: tiles of this size have more rows and columns than there are features.
    """
    if height + width > MAX_FEATURES:
        raise ValueError(
            f"height and width of a tile are at most {MAX_FEATURES} together, got {height} x {width}"
        )
    cut = tiles_of_queries if by == "query" else tiles_of_keys
    length = neighborhood.num_queries if by == "query" else neighborhood.num_keys
    builder = _Builder(by, height * width, chunk, length)
    for group in _pack(cut(neighborhood, height, width), by, height * width, chunk):
        builder.add(group)
    return builder.finish(dtype, device)


def _pack(tiles: list[TileTokens], by: str, size: int, chunk: int) -> list[list[TileTokens]]:
    """Group tiles that fit one tile and its features together: first fit, those of most tokens first.

    A program executes as much outside its loop as almost two chunks inside, so fewer tiles pay. No group has
    more chunks than the longest tile alone, which would delay the end of a small launch.
    """
    longest = chunk * max((-(-tile.num_looped(by) // chunk) for tile in tiles), default=0)
    groups: list[list[TileTokens]] = []
    rooms: dict[int, tuple[int, int, int]] = {}
    for tile in sorted(tiles, key=lambda tile: (-len(tile.fixed), -tile.num_looped(by))):
        need = len(tile.fixed), tile.num_looped(by), tile.num_features(by)
        fitting = (i for i, room in rooms.items() if all(have >= want for have, want in zip(room, need)))
        number = next(fitting, len(groups))
        if number == len(groups):
            groups.append([])
        groups[number].append(tile)
        room = rooms.get(number, (size, longest, FEATURES))
        rooms[number] = room[0] - need[0], room[1] - need[1], room[2] - need[2]
        # A group that is full is not looked at again.
        if min(rooms[number][0], rooms[number][2]) <= 0:
            del rooms[number]
    return groups


class _Chunk(NamedTuple):
    """Looped tokens (BN) and the number of their mask."""

    tokens: np.ndarray
    looped_mask: int


class _Tile(NamedTuple):
    """Fixed tokens (BM), the number of their mask, and the chunks."""

    fixed: np.ndarray
    fixed_mask: int
    chunks: list[_Chunk]


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
        self._tiles: list[_Tile] = []
        self._fixed_masks: dict[bytes, int] = {}
        self._looped_masks: dict[bytes, int] = {}

    def add(self, group: list[TileTokens]) -> None:
        """Add one tile that all of the group share."""
        fixed = np.concatenate([tokens.fixed for tokens in group])
        fixed_mask, looped_mask, looped = self._factors(group)
        missing = self.size - len(fixed)
        pieces = [slice(i, i + self.chunk) for i in range(0, len(looped), self.chunk)]
        self._tiles.append(
            _Tile(
                np.pad(fixed, (0, missing), constant_values=self.length),
                _number_of(np.pad(fixed_mask, ((0, missing), (0, 0))), self._fixed_masks),
                [self._chunk(looped_mask[piece], looped[piece]) for piece in pieces],
            )
        )

    def _factors(self, group: list[TileTokens]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the masks of the fixed and of the looped tokens, and the looped tokens.

        Each of the group owns a range of features, and its looped tokens are NEGATIVE at all others.
        """
        total = sum(tokens.num_features(self.by) for tokens in group)
        fixed_masks = [np.zeros((0, total), dtype=np.float32)]
        looped_masks = [np.zeros((0, total), dtype=np.float32)]
        looped = [np.zeros(0, dtype=np.int64)]
        first = 0
        for tokens in group:
            own = slice(first, first + tokens.num_features(self.by))
            first = own.stop
            fixed_mask = np.zeros((len(tokens.fixed), total), dtype=np.float32)
            for part in tokens.parts:
                # The same for every part.
                fixed_mask[:, own] = part.fixed_features(self.by)
                looped.append(part.keys if self.by == "query" else part.queries)
                looped_mask = np.full((len(looped[-1]), total), NEGATIVE, dtype=np.float32)
                looped_mask[:, own] = part.looped_features(self.by)
                looped_masks.append(looped_mask)
            fixed_masks.append(fixed_mask)
        return np.concatenate(fixed_masks), np.concatenate(looped_masks), np.concatenate(looped)

    def _chunk(self, looped_mask: np.ndarray, tokens: np.ndarray) -> _Chunk:
        # Every fixed token is 1 at some feature.
        missing = self.chunk - len(tokens)
        mask = np.pad(looped_mask, ((0, missing), (0, 0)), constant_values=NEGATIVE)
        return _Chunk(np.pad(tokens, (0, missing), mode="edge"), _number_of(mask, self._looped_masks))

    def finish(self, dtype: torch.dtype, device: torch.device) -> Tables:
        """Return the tables of all tiles that were added."""
        # Long tiles first: the short ones fill the tail of the launch.
        tiles = sorted(self._tiles, key=lambda tile: -len(tile.chunks))
        chunks = [chunk for tile in tiles for chunk in tile.chunks]
        starts = np.concatenate([[0], np.cumsum([len(tile.chunks) for tile in tiles])])
        fixed_masks = _stacked(self._fixed_masks, self.size)
        looped_masks = _stacked(self._looped_masks, self.chunk)
        few = not (fixed_masks[:, :, FEATURES:].any() or looped_masks[:, :, FEATURES:].any())
        used = slice(0, FEATURES if few else MAX_FEATURES)
        both_signs = np.stack([fixed_masks, -fixed_masks], axis=1).reshape(-1, self.size, MAX_FEATURES)
        on_cpu = (
            _ints([tile.fixed for tile in tiles]),
            _ints(starts),
            # A launch without chunks reads none of these, but needs a pointer.
            _ints([chunk.tokens for chunk in chunks] or np.zeros((1, self.chunk))),
            # Each fixed mask is stored with its negative behind it.
            _ints([2 * tile.fixed_mask for tile in tiles]),
            _ints([chunk.looped_mask for chunk in chunks] or [0]),
            torch.from_numpy(np.ascontiguousarray(both_signs[:, :, used])).to(dtype),
            torch.from_numpy(np.ascontiguousarray(looped_masks[:, :, used])).to(dtype),
        )
        return Tables(*(tensor.to(device) for tensor in on_cpu))


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
