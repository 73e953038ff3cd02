"""Encoding images once, so that a transformer trains on their codes many times.

Variant 0 of an image is the image itself; the others are its mirror, or slightly distorted versions. A
variant is a function of (seed, variant, example), so codes made here in memory equal those that `mvar
tokenize` keeps in a folder.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
from torch import Tensor

from mvar_models.data.source import ImageSource, Prefetcher
from mvar_models.data.transforms import affine, random_affine
from mvar_models.devices import fit_batch
from mvar_models.files import digest
from mvar_models.networks.vqvae import VQVAE
from mvar_models.pipeline.identity import network_identity
from mvar_models.randomness import Purpose, generator
from mvar_models.sampling.progress import counting
from mvar_models.tokens.token_set import TokenSet

logger = logging.getLogger(__name__)

# Per pass of the encoder: 64 images up to 256 px and fewer of larger ones, since memory grows with pixels.
_MOST_IMAGES, _MOST_PIXELS = 64, 64 * 256 * 256
MOST_VARIANTS = 64


def tokenize(
    vqvae: VQVAE,
    source: ImageSource,
    indices: np.ndarray,
    *,
    num_variants: int = 1,
    seed: int = 0,
) -> TokenSet:
    """Encode examples in memory; those that cannot be read are left out.

    Args:
        vqvae: encodes the images.
        source: the images.
        indices: (n,) examples to encode.
        num_variants: the image and `num_variants - 1` variants: the mirror where classes allow it (then at
            most 2), small affine maps otherwise.
        seed: of the affine maps.
    """
    codes = np.empty((num_variants, len(indices), vqvae.config.length), dtype=np.uint16)
    kept = np.zeros(len(indices), dtype=bool)
    batches = encode_batches(vqvae, source, indices, num_variants=num_variants, seed=seed)
    with counting("encoding", len(indices)) as meter:
        for positions, part in batches:
            codes[:, positions] = part
            kept[positions] = True
            meter.advance(len(positions))
    # Without one the codes are hashed: the fingerprint of files does not know what was changed in place.
    fingerprint = ""
    if not source.stamps.any():
        identity = network_identity(vqvae)
        fingerprint = token_fingerprint(source.fingerprint, identity, num_variants, seed, indices)
    return TokenSet(codes if kept.all() else codes[:, kept], source.labels[indices[kept]], fingerprint)


def tokenize_split(
    vqvae: VQVAE, source: ImageSource, num_variants: int | None = None, seed: int = 0
) -> tuple[TokenSet, TokenSet]:
    """Encode the training images with their variants, and the held-out images as they are, in memory.

    Args:
        vqvae: encodes the images.
        source: the images and their split.
        num_variants: per training image; default: as many as `default_num_variants` says.
        seed: of variants that are not mirrors.

    Raises:
        ValueError: no image of a class can be read.
    """
    if num_variants is None:
        num_variants = default_num_variants(source.mirror_safe)
    train = tokenize(vqvae, source, source.train, num_variants=num_variants, seed=seed)
    check_classes(source, train.labels)
    held_out = tokenize(vqvae, source, source.held_out)
    source.log_problems()
    if not len(held_out):
        logger.warning("no held-out image can be read; validation is on the training images")
    return train, held_out if len(held_out) else train


def encode_batches(
    vqvae: VQVAE,
    source: ImageSource,
    indices: np.ndarray,
    *,
    num_variants: int,
    seed: int,
    batch_size: int | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield per batch the readable positions in `indices`, (m,), and their codes (num_variants, m, L).

    The next batch is read while the current one is encoded.
    """
    batch_size = batch_size or images_per_batch(vqvae)
    check_num_variants(num_variants, source.mirror_safe)
    if vqvae.config.vocab_size > np.iinfo(np.uint16).max + 1:
        raise ValueError(
            f"vocab_size {vqvae.config.vocab_size} does not fit the 16 bits per code of a TokenSet"
        )
    reader = Prefetcher(lambda start: source.readable(indices[start : start + batch_size]))
    try:
        for start in range(0, len(indices), batch_size):
            following = start + batch_size
            images, kept = reader.get(start, following if following < len(indices) else None)
            codes = np.empty((num_variants, len(kept), vqvae.config.length), dtype=np.uint16)
            for variant in range(num_variants if len(kept) else 0):
                varied = _variant(images, indices[start + kept], variant, source.mirror_safe, seed)
                codes[variant] = vqvae.encode(varied.to(vqvae.device, vqvae.dtype)).cpu().numpy()
            yield start + kept, codes
    finally:
        reader.close()


def images_per_batch(vqvae: VQVAE) -> int:
    """Return how many images to encode at a time: 64 up to 256 px, fewer of larger ones."""
    return fit_batch(_MOST_PIXELS, vqvae.config.resolution**2, most=_MOST_IMAGES)


def default_num_variants(mirror_safe: bool) -> int:
    """Return 2, the image and its mirror as in the released recipe, if a mirror keeps the class; else 1."""
    return 2 if mirror_safe else 1


def check_num_variants(num_variants: int, mirror_safe: bool) -> None:
    """Raise ValueError unless that many variants exist; users know them as `copies`."""
    most = 2 if mirror_safe else MOST_VARIANTS
    if not 1 <= num_variants <= most:
        why = " (the image and its mirror)" if mirror_safe else ""
        raise ValueError(f"copies must be between 1 and {most} for this data{why}, got {num_variants}")


def check_classes(source: ImageSource, labels: np.ndarray) -> None:
    """Raise ValueError naming the first class of the source that has no example in `labels`."""
    missing = set(np.unique(source.labels).tolist()) - set(np.unique(labels).tolist())
    if missing:
        raise source.unusable_class(min(missing))


def token_fingerprint(data: str, vqvae: str, num_variants: int, seed: int, indices: np.ndarray) -> str:
    """Hash what decides the codes of a set of images.

    Args:
        data: fingerprint of the dataset.
        vqvae: identity of the VQVAE.
        num_variants: per image.
        seed: of the variants.
        indices: (n,) examples of the dataset.
    """
    return digest(data, vqvae, str(num_variants), str(seed), indices.astype("<i8").tobytes())


def _variant(images: Tensor, examples: np.ndarray, variant: int, mirror_safe: bool, seed: int) -> Tensor:
    if variant == 0:
        return images
    if mirror_safe:
        return images.flip(-1)
    # Seeded per example and not per batch, so that the batch size does not change a variant.
    maps = [random_affine(generator(seed + variant, Purpose.AUGMENT, int(i)), 1) for i in examples]
    return affine(images, np.concatenate(maps))
