"""`TokenSet`: the codes of a set of images with their labels, in memory or in the shards of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mvar_models.data.arrays import read_npy
from mvar_models.files import digest

Indices = np.ndarray | int
# Shards mapped at a time: Linux gives a process some 65,000 maps.
_MOST_MAPPED = 4096


class Codes(Protocol):
    """(num_variants, N, L) uint16: what `TokenSet` needs, from memory or disk."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, key: tuple[Indices, np.ndarray], /) -> np.ndarray:
        """Return (n, L) codes for a variant, or (n,) variants, and (n,) members."""
        ...


@dataclass(frozen=True)
class TokenSet:
    """Codes of N images in all their variants.

    Attributes:
        codes: (num_variants, N, L) uint16; variant 0 is the image itself.
        labels: (N,) int64.
        fingerprint: hex digits that change with the images, the VQVAE and the variants; default: a hash of
            codes and labels.
    """

    codes: Codes
    labels: np.ndarray
    fingerprint: str = ""

    def __post_init__(self) -> None:
        if not self.fingerprint:
            members = np.arange(len(self))
            content = b"".join(self.codes[variant, members].tobytes() for variant in range(self.num_variants))
            object.__setattr__(self, "fingerprint", digest(self.labels.tobytes(), content))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_variants(self) -> int:
        return self.codes.shape[0]

    def batch(self, members: np.ndarray, variants: Indices = 0) -> tuple[Tensor, Tensor]:
        """Return labels (n,) and indices (n, L), both int64.

        Args:
            members: (n,) in 0 .. N - 1.
            variants: one variant for all members, or (n,) with one for each.
        """
        codes = self.codes[variants, members]
        return torch.from_numpy(self.labels[members]), torch.from_numpy(codes.astype(np.int64))


class ShardedCodes:
    """Codes (num_variants, N, L) in .npy shards, each mapped into memory when first read.

    Args:
        files: the shards, in order.
        counts: images in each.
        shape: num_variants and L.
        indices: (N,) positions in the concatenation of all shards, which become members 0 .. N - 1.
        vocab_size: number of codes.
    """

    def __init__(
        self,
        files: Sequence[Path],
        counts: Sequence[int],
        shape: tuple[int, int],
        indices: np.ndarray,
        vocab_size: int = 1 << 16,
    ) -> None:
        self._files = tuple(files)
        self._ends = np.cumsum(counts)
        self._starts = self._ends - np.asarray(counts)
        self._indices = indices
        self._vocab_size = vocab_size
        self._mapped: dict[int, np.ndarray] = {}
        self.shape = (shape[0], len(indices), shape[1])

    def __getitem__(self, key: tuple[Indices, np.ndarray]) -> np.ndarray:
        variants, members = key
        rows = self._indices[members]
        variants = np.broadcast_to(variants, rows.shape)
        shards = np.searchsorted(self._ends, rows, side="right")
        out = np.empty((len(rows), self.shape[2]), dtype=np.uint16)
        # One indexing operation per shard: a batch of 256 would otherwise take 256.
        for shard in np.unique(shards).tolist():
            mine = shards == shard
            codes = self._shard(shard)[variants[mine], rows[mine] - self._starts[shard]]
            if codes.max() >= self._vocab_size:
                raise ValueError(
                    f"{self._files[shard]} is damaged: it holds the code {codes.max()}, the VQVAE has "
                    f"{self._vocab_size}; `mvar tokenize --verify` tells what else is"
                )
            out[mine] = codes
        return out

    def _shard(self, shard: int) -> np.ndarray:
        if shard not in self._mapped:
            if len(self._mapped) == _MOST_MAPPED:
                del self._mapped[next(iter(self._mapped))]
            shape = (self.shape[0], int(self._ends[shard] - self._starts[shard]), self.shape[2])
            self._mapped[shard] = read_npy(self._files[shard], np.dtype("<u2"), shape)
        return self._mapped[shard]
