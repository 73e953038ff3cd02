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

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from mvar_kernels import caches
from mvar_kernels.backends.triton.tile_parts import FEATURES, MAX_FEATURES, NEGATIVE, Tiles, tiles_of
from mvar_kernels.pyramid import Neighborhood


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


@caches.tables(256 << 20, check=_not_while_capturing)
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
        height: tiles have at most height x width fixed tokens, in two dimensions of this shape.
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
    length = neighborhood.num_queries if by == "query" else neighborhood.num_keys
    made = tiles_of(neighborhood, by, height, width)
    return _assembled(_pack(made, height * width, chunk), height * width, chunk, length, dtype, device)


def _pack(made: list[Tiles], size: int, chunk: int) -> list[Tiles]:
    """Join tiles that fit one tile and its features: first fit, those of most tokens first.

    A program executes as much outside its loop as almost two chunks inside, so fewer tiles pay. No tile gets
    more chunks than the longest has alone, which would delay the end of a small launch.
    """
    longest = chunk * max(-(-tiles.looped.shape[1] // chunk) for tiles in made)
    needs = [(tiles.fixed.shape[1], tiles.looped.shape[1], tiles.fixed_features.shape[1]) for tiles in made]
    fewest, _, least = map(min, zip(*needs))
    # Full tiles have no room for any other; they stay as they are, however many.
    shared = [i for i, need in enumerate(needs) if need[0] + fewest <= size and need[2] + least <= FEATURES]
    packed = [tiles for i, tiles in enumerate(made) if i not in shared]
    groups: list[list[Tiles]] = []
    rooms: dict[int, tuple[int, int, int]] = {}
    singles = [(needs[i], tile) for i in shared for tile in _one_by_one(made[i])]
    for need, tile in sorted(singles, key=lambda each: (-each[0][0], -each[0][1], each[1].numbers[0])):
        fitting = (i for i, room in rooms.items() if all(have >= want for have, want in zip(room, need)))
        number = next(fitting, len(groups))
        if number == len(groups):
            groups.append([])
        groups[number].append(tile)
        room = rooms.get(number, (size, longest, FEATURES))
        rooms[number] = room[0] - need[0], room[1] - need[1], room[2] - need[2]
        # A tile that is full is not looked at again.
        if rooms[number][0] < fewest or rooms[number][2] < least:
            del rooms[number]
    return packed + [_joined(group) for group in groups]


def _one_by_one(tiles: Tiles) -> Iterator[Tiles]:
    for i in range(len(tiles.numbers)):
        one = slice(i, i + 1)
        yield tiles._replace(fixed=tiles.fixed[one], looped=tiles.looped[one], numbers=tiles.numbers[one])


def _joined(group: list[Tiles]) -> Tiles:
    """Make one tile of several: each owns some features, and its looped tokens are NEGATIVE elsewhere."""
    if len(group) == 1:
        return group[0]
    total = sum(tiles.fixed_features.shape[1] for tiles in group)
    fixed_features, looped_features, first = [], [], 0
    for tiles in group:
        before, after = first, total - first - tiles.fixed_features.shape[1]
        first = total - after
        around = ((0, 0), (before, after))
        fixed_features.append(np.pad(tiles.fixed_features, around))
        looped_features.append(np.pad(tiles.looped_features, around, constant_values=NEGATIVE))
    return Tiles(
        np.concatenate([tiles.fixed for tiles in group], axis=1),
        np.concatenate([tiles.looped for tiles in group], axis=1),
        np.concatenate(fixed_features),
        np.concatenate(looped_features),
        group[0].numbers,
    )


def _assembled(
    made: list[Tiles], size: int, chunk: int, length: int, dtype: torch.dtype, device: torch.device
) -> Tables:
    """Lay tiles out, padded, those of most chunks first: the short ones fill the tail of the launch."""
    chunks = [-(-tiles.looped.shape[1] // chunk) for tiles in made]

    def per_tile(values: list[int]) -> np.ndarray:
        return np.repeat(values, [len(tiles.numbers) for tiles in made])

    order = np.lexsort(
        (
            np.concatenate([tiles.numbers for tiles in made]),
            per_tile([-tiles.looped.shape[1] for tiles in made]),
            per_tile([-tiles.fixed.shape[1] for tiles in made]),
            per_tile([-count for count in chunks]),
        )
    )
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    starts = np.concatenate([[0], np.cumsum(per_tile(chunks)[order])])
    fixed = np.full((len(order), size), length, dtype=np.int32)
    # A launch without chunks reads none of these, but needs a pointer.
    looped = np.zeros((max(1, int(starts[-1])), chunk), dtype=np.int32)
    fixed_mask, looped_mask = np.empty(len(order), dtype=np.int32), np.zeros(len(looped), dtype=np.int32)
    fixed_masks: dict[bytes, int] = {}
    looped_masks: dict[bytes, int] = {}
    most = max(tiles.fixed_features.shape[1] for tiles in made)
    features = FEATURES if most <= FEATURES else MAX_FEATURES
    begin = 0
    for tiles, count in zip(made, chunks):
        rows = place[begin : begin + len(tiles.numbers)]
        begin += len(tiles.numbers)
        fixed[rows, : tiles.fixed.shape[1]] = tiles.fixed
        # Each fixed mask is stored with its negative behind it.
        fixed_mask[rows] = 2 * _number_of(_padded(tiles.fixed_features, size, features, 0), fixed_masks)
        # Every fixed token is 1 at some feature, so this hides the padding of chunks.
        hidden = _padded(tiles.looped_features, count * chunk, features, NEGATIVE)
        if count:
            # Padding repeats a token of the tile.
            slots = np.minimum(np.arange(count * chunk), tiles.looped.shape[1] - 1)
            places = starts[rows][:, None] + np.arange(count)
            looped[places] = tiles.looped[:, slots].reshape(len(rows), count, chunk)
            looped_mask[places] = [
                _number_of(hidden[i * chunk : (i + 1) * chunk], looped_masks) for i in range(count)
            ]
    fixed_factors = _stacked(fixed_masks, size, features)
    both_signs = np.stack([fixed_factors, -fixed_factors], axis=1).reshape(-1, size, features)
    on_cpu = (
        torch.from_numpy(fixed),
        torch.from_numpy(starts.astype(np.int32)),
        torch.from_numpy(looped),
        torch.from_numpy(fixed_mask),
        torch.from_numpy(looped_mask),
        torch.from_numpy(both_signs).to(dtype),
        torch.from_numpy(_stacked(looped_masks, chunk, features)).to(dtype),
    )
    return Tables(*(tensor.to(device) for tensor in on_cpu))


def _padded(values: np.ndarray, rows: int, features: int, filling: float) -> np.ndarray:
    """Return (rows, features): the values, `filling` in more rows, and zeros in more columns."""
    padded = np.zeros((rows, features), dtype=np.float32)
    padded[: len(values), : values.shape[1]] = values
    padded[len(values) :, : values.shape[1]] = filling
    return padded


def _number_of(mask: np.ndarray, known: dict[bytes, int]) -> int:
    """Return the number of a mask, a new one if it is not among the known."""
    return known.setdefault(mask.tobytes(), len(known))


def _stacked(masks: dict[bytes, int], rows: int, features: int) -> np.ndarray:
    """Return (n, rows, features), with one mask of zeros if there are none."""
    if not masks:
        return np.zeros((1, rows, features), dtype=np.float32)
    return np.stack([np.frombuffer(raw, dtype=np.float32).reshape(rows, features) for raw in masks])
