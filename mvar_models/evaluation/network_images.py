"""Sets of images that networks make when they are read: drawn by a pipeline, or decoded from codes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from mvar_models.devices import fit_batch
from mvar_models.images import to_uint8
from mvar_models.networks.vqvae import VQVAE
from mvar_models.pipeline import Pipeline
from mvar_models.pipeline.identity import determinants, network_identity
from mvar_models.tokens.token_set import TokenSet

# Images and pixels decoded at a time: the released decoder holds about 0.3 GB per image of 256 px.
_BATCH, _PIXELS = 8, 8 * 256 * 256


class DrawnImages:
    """Images that a pipeline draws with its own preset.

    Image i has seed `seed` + i, so it does not depend on which images are read together or by which process.

    Args:
        pipeline: Draws the images.
        labels: (N,) the class of each image.
        seed: Seed of the first image.
        name: What messages call the set.
    """

    def __init__(
        self, pipeline: Pipeline, labels: Sequence[int] | np.ndarray, *, seed: int = 0, name: str = "drawn"
    ) -> None:
        side = pipeline.vqvae.config.resolution
        self._pipeline, self._seed = pipeline, seed
        self._labels = np.asarray(labels, dtype=np.int64)
        self.name = name
        self.labels: np.ndarray | None = self._labels
        self.class_names = pipeline.model.config.class_names
        self.size = (side, side)

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def digest(self) -> str:
        """SHA-256 of all that determines the images."""
        made = determinants(self._pipeline)
        return hashlib.sha256(f"{made} {self._seed} {self._labels.tolist()}".encode()).hexdigest()

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Draw images; as `ImageSet.read`."""
        images = self._pipeline(
            self._labels[indices].tolist(),
            seed=(self._seed + indices).tolist(),
            output_type="np",
            batch_size=max(1, len(indices)),
        )
        return images, np.arange(len(indices))


class DecodedImages:
    """Images as a VQVAE decodes them from stored codes, where the images themselves are not at hand.

    Args:
        vqvae: The VQVAE that made the codes.
        tokens: The codes, of which variant 0 is the image itself.
        members: (N,) the images of `tokens` that make up the set.
        name: What messages call the set.
    """

    def __init__(self, vqvae: VQVAE, tokens: TokenSet, members: np.ndarray, name: str = "decoded") -> None:
        side = vqvae.config.resolution
        self._vqvae, self._tokens, self._members = vqvae, tokens, members
        self.name = name
        self.labels: np.ndarray | None = tokens.labels[members]
        self.size = (side, side)

    def __len__(self) -> int:
        return len(self._members)

    @property
    def digest(self) -> str:
        """SHA-256 of the codes, of which of them these are, and of what decodes them."""
        made = f"{network_identity(self._vqvae)} {self._tokens.fingerprint} {self._members.tolist()}"
        return hashlib.sha256(made.encode()).hexdigest()

    @torch.no_grad()
    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Decode images; as `ImageSet.read`."""
        _, codes = self._tokens.batch(self._members[indices])
        parts = codes.split(fit_batch(_PIXELS, self.size[0] ** 2, most=_BATCH))
        images = [to_uint8(self._vqvae.decode(part.to(self._vqvae.device))) for part in parts if len(part)]
        return np.concatenate([np.empty((0, *self.size, 3), dtype=np.uint8), *images]), np.arange(
            len(indices)
        )
