"""`TokenSet`: the codes of a set of images with their labels, in memory or on disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mvar_models.data.fingerprint import digest

Indices = np.ndarray | int


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
