"""Pictures as codes: made once by the VQVAE, trained on many times.

2 bytes a code. Copy 0 of an example is the picture itself; the others are its mirror or lightly moved versions. A variant is a function of
(seed, copy, example), so that codes made here in memory and codes that `mvar tokenize` keeps in a folder are the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mvar_models.data.augment import affine, random_moves
from mvar_models.data.source import ImageSource, digest
from mvar_models.devices import fit_batch
from mvar_models.networks.vqvae import VQVAE
from mvar_models.randomness import Purpose, generator

_BATCH, _PIXELS = 64, 64 * 256 * 256
MOST_COPIES = 64
Progress = Callable[[Iterable[int]], Iterable[int]]


class Codes(Protocol):
    """(copies, N, L) uint16, in memory or on disk: what `TokenSet` reads of it."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, which: tuple[np.ndarray | int, np.ndarray], /) -> np.ndarray: ...


@dataclass(frozen=True)
class TokenSet:
    """codes: (copies, N, L) uint16; labels: (N,) int64; fingerprint: hex digits that change with the pictures, the VQVAE and the variants."""

    codes: Codes
    labels: np.ndarray
    fingerprint: str = ""

    def __post_init__(self) -> None:
        if not self.fingerprint:
            content = self.codes[:, np.arange(len(self))]  # type: ignore[index]
            object.__setattr__(self, "fingerprint", digest(self.labels.tobytes(), content.tobytes()))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def copies(self) -> int:
        return self.codes.shape[0]

    def batch(self, members: np.ndarray, copies: np.ndarray | int = 0) -> tuple[Tensor, Tensor]:
        """labels (n,) and indices (n, L), both int64."""
        codes = self.codes[copies, members]
        return torch.from_numpy(self.labels[members]), torch.from_numpy(codes.astype(np.int64))


def tokenize(
    vqvae: VQVAE,
    source: ImageSource,
    which: np.ndarray,
    *,
    copies: int = 1,
    seed: int = 0,
    progress: Progress = iter,
) -> TokenSet:
    """Codes of the examples `which` that can be read: the pictures, then `copies - 1` variants of each.

    Variants are the mirror where classes allow it (then copies is at most 2), small affine maps otherwise, drawn by (seed, copy, example).
    """
    codes = np.empty((copies, len(which), vqvae.config.length), dtype=np.uint16)
    kept = np.zeros(len(which), dtype=bool)
    batches = encoded(vqvae, source, which, copies=copies, seed=seed)
    for _ in progress(range(0, len(which), pictures_at_a_time(vqvae))):
        positions, part = next(batches)
        codes[:, positions] = part
        kept[positions] = True
    fingerprint = token_fingerprint(source.fingerprint, vqvae_identity(vqvae), copies, seed, which)
    return TokenSet(codes if kept.all() else codes[:, kept], source.labels[which[kept]], fingerprint)


def encoded(
    vqvae: VQVAE,
    source: ImageSource,
    which: np.ndarray,
    *,
    copies: int,
    seed: int,
    batch_size: int | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batch by batch: positions in `which` of the m pictures that could be read, and their codes (copies, m, L) uint16.

    The next batch is read while one is encoded.
    """
    batch_size = batch_size or pictures_at_a_time(vqvae)
    check_copies(copies, source.flips)
    if vqvae.config.vocab_size > np.iinfo(np.uint16).max + 1:
        raise ValueError(f"vocab_size {vqvae.config.vocab_size} does not fit the cache's 16 bits a code")
    starts = range(0, len(which), batch_size)
    with ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(source.readable, which[:batch_size])
        for start in starts:
            images, kept = coming.result()
            coming = ahead.submit(source.readable, which[start + batch_size : start + 2 * batch_size])
            codes = np.empty((copies, len(kept), vqvae.config.length), dtype=np.uint16)
            for copy in range(copies if len(kept) else 0):
                variant = _variant(images, which[start + kept], copy, source.flips, seed)
                codes[copy] = vqvae.encode(variant.to(vqvae.device, vqvae.dtype)).cpu().numpy()
            yield start + kept, codes


def pictures_at_a_time(vqvae: VQVAE) -> int:
    """To encode: 64 up to 256 px, fewer of larger ones, as memory goes with pixels (0.7 GB for a layer of the released encoder's finest level)."""
    return fit_batch(_PIXELS, vqvae.config.resolution**2, most=_BATCH)


def default_copies(flips: bool) -> int:
    """The picture and its mirror, as in the released recipe, where a mirror is still of its class; else the picture."""
    return 2 if flips else 1


def check_copies(copies: int, flips: bool) -> None:
    """ValueError unless that many variants exist."""
    most = 2 if flips else MOST_COPIES
    if not 1 <= copies <= most:
        why = " (the picture and its mirror)" if flips else ""
        raise ValueError(f"copies must be between 1 and {most} for this data{why}, got {copies}")


def check_classes(source: ImageSource, labels: np.ndarray) -> None:
    """ValueError naming the first class of the data that none of `labels` is of."""
    missing = set(np.unique(source.labels).tolist()) - set(np.unique(labels).tolist())
    if missing:
        raise source.unusable_class(min(missing))


def vqvae_identity(vqvae: VQVAE) -> str:
    """16 hex digits of everything that decides codes and reconstructions: configuration and weights (without the count of codes' use)."""
    total = hashlib.sha256(vqvae.config.to_json().encode())
    for name, value in sorted(vqvae.state_dict().items()):
        if not name.endswith("code_usage"):
            total.update(
                name.encode()
                + value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            )
    return total.hexdigest()[:16]


def token_fingerprint(data: str, vqvae: str, copies: int, seed: int, which: np.ndarray) -> str:
    """Of the codes of the examples `which` of a dataset, from the fingerprints of what they are made of."""
    return digest(data, vqvae, str(copies), str(seed), which.astype("<i8").tobytes())


def _variant(images: Tensor, examples: np.ndarray, copy: int, flips: bool, seed: int) -> Tensor:
    if copy == 0:
        return images
    if flips:
        return images.flip(-1)
    return affine(
        images,
        np.concatenate([random_moves(generator(seed + copy, Purpose.AUGMENT, int(i)), 1) for i in examples]),
    )
