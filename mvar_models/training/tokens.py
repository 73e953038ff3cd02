"""Pictures as codes: made once by the VQVAE, trained on many times.

2 bytes a code. Copy 0 of an example is the picture itself; the others are its mirror or lightly augmented versions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mvar_models.training.augment import affine
from mvar_models.training.data import ImageSource
from mvar_models.training.randomness import Purpose, generator
from mvar_models.vqvae import VQVAE

_BATCH = 64
Progress = Callable[[Iterable[int]], Iterable[int]]


@dataclass(frozen=True)
class TokenSet:
    """codes: (copies, N, L) uint16; labels: (N,) int64."""

    codes: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def fingerprint(self) -> str:
        """Of the codes and the labels: another dataset, order or VQVAE has another."""
        digest = hashlib.sha256(str(self.codes.shape).encode())
        digest.update(np.ascontiguousarray(self.codes))
        digest.update(np.ascontiguousarray(self.labels))
        return digest.hexdigest()[:16]

    @property
    def copies(self) -> int:
        return self.codes.shape[0]

    def batch(self, members: np.ndarray, copies: np.ndarray | int = 0) -> tuple[Tensor, Tensor]:
        """labels (n,) and indices (n, L), both int64."""
        codes = self.codes[copies, members]
        return torch.from_numpy(self.labels[members]), torch.from_numpy(codes.astype(np.int64))


def tokenize(
    vqvae: VQVAE, source: ImageSource, which: np.ndarray, *, copies: int = 1, seed: int = 0, progress: Progress = iter
) -> TokenSet:
    """Codes of the examples `which`: the pictures, then `copies - 1` variants of each.

    Variants are the mirror where classes allow it (then copies is at most 2), small affine maps otherwise, drawn by (seed, copy).
    """
    if not 1 <= copies <= (2 if source.flips else 64):
        raise ValueError(f"copies must be between 1 and {2 if source.flips else 64} for this data, got {copies}")
    if vqvae.config.vocab_size > np.iinfo(np.uint16).max + 1:
        raise ValueError(f"vocab_size {vqvae.config.vocab_size} does not fit the cache's 16 bits a code")
    codes = np.empty((copies, len(which), vqvae.config.length), dtype=np.uint16)
    starts = range(0, len(which), _BATCH)
    for start in progress(starts):
        images = source.images(which[start : start + _BATCH])
        for copy in range(copies):
            variant = _variant(images, copy, source.flips, generator(seed + copy, Purpose.AUGMENT, start))
            codes[copy, start : start + len(images)] = vqvae.encode(variant.to(vqvae.device, vqvae.dtype)).cpu().numpy()
    return TokenSet(codes, source.labels[which])


def _variant(images: Tensor, copy: int, flips: bool, rng: np.random.Generator) -> Tensor:
    if copy == 0:
        return images
    return images.flip(-1) if flips else affine(images, rng)
