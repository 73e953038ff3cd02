"""The output of a pipeline: images in the type asked for, and the codes and latents behind them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mvar_models.images import to_uint8
from mvar_models.networks.vqvae import VQVAE
from mvar_models.sampling.sampler import SampleResult

Images = list[Image.Image] | np.ndarray | Tensor
Decoded = np.ndarray | Tensor

_OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class PipelineOutput(Sequence[Any]):
    """Images, and the codes behind them; indexing, len and iterating give the images.

    Attributes:
        images: A list of PIL images, an array or a tensor, as `output_type` says.
    """

    def __init__(self, images: Any, batches: Sequence[SampleResult], vqvae: VQVAE, output_type: str) -> None:
        self.images = images
        self._batches, self._vqvae, self._output_type = batches, vqvae, output_type

    @classmethod
    def of(cls, batches: Iterable[SampleResult], vqvae: VQVAE, output_type: str) -> PipelineOutput:
        """Decode batches one after the other; there may be none."""
        parts: list[Decoded] = []
        kept: list[SampleResult] = []
        for batch in batches:
            parts.append(decode(vqvae, batch.f_hat, output_type, batch.images))
            kept.append(without_images(batch, output_type))
        return cls(join(vqvae, parts, output_type), kept, vqvae, output_type)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Any:
        return self.images[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.images)

    @cached_property
    def indices(self) -> Tensor:
        """Codes of every scale: (B, L) int64; of an edit, those of the square that the model sees."""
        empty = torch.empty(0, self._vqvae.config.length, dtype=torch.int64, device=self._vqvae.device)
        return torch.cat([batch.indices for batch in self._batches]) if self._batches else empty

    @cached_property
    def latents(self) -> Tensor:
        """The f_hat that the decoder takes: (B, z, h, h) float32 on the device of the VQVAE."""
        latents = join(self._vqvae, [batch.f_hat.to(self._vqvae.device) for batch in self._batches], "latent")
        assert isinstance(latents, Tensor)
        return latents

    @cached_property
    def scales(self) -> list[Any]:
        """The images after each scale that was sampled, decoded now; of an edit, the squares."""
        if not self._batches:
            return [self.images] * len(self._vqvae.config.sides)
        return [
            join(self._vqvae, [self._decode(f_hat) for f_hat in f_hats], self._output_type)
            for f_hats in zip(*(batch.f_hats for batch in self._batches))
        ]

    def _decode(self, f_hat: Tensor) -> Decoded:
        with torch.no_grad():
            return decode(self._vqvae, f_hat.to(self._vqvae.device), self._output_type)


def without_images(batch: SampleResult, output_type: str) -> SampleResult:
    """Return what an output keeps of a batch; its latents lie where its images do."""
    on_host = output_type in ("pil", "np")
    return replace(batch, images=None, f_hats=tuple(each.cpu() if on_host else each for each in batch.f_hats))


def check_output_type(output_type: str) -> None:
    """Raise ValueError unless the type of images is known."""
    if output_type not in _OUTPUT_TYPES:
        raise ValueError(f"output_type must be one of {', '.join(_OUTPUT_TYPES)}, got {output_type!r}")


def decode(vqvae: VQVAE, f_hat: Tensor, output_type: str, images: Tensor | None = None) -> Decoded:
    """Decode latents (B, z, h, h) a few at a time: float32 in [0, 1] on their device for "pt", else uint8.

    "latent" returns the latents themselves. `images` (B, 3, R, R) in [-1, 1] are the latents decoded already.
    """
    if output_type == "latent":
        return f_hat
    decoded = vqvae.decode_slices(f_hat) if images is None else [images]
    if output_type == "pt":
        return torch.cat([(part.float() + 1) / 2 for part in decoded])
    return np.concatenate([to_uint8(part) for part in decoded])


def join(vqvae: VQVAE, parts: Sequence[Decoded], output_type: str) -> Images:
    """Join the images of all batches; there may be none."""
    side = vqvae.config.resolution
    if output_type in ("pt", "latent"):
        z, h = vqvae.config.z_channels, vqvae.config.sides[-1]
        shape = (3, side, side) if output_type == "pt" else (z, h, h)
        tensors = [part for part in parts if isinstance(part, Tensor)]
        return torch.cat([torch.empty(0, *shape, dtype=torch.float32, device=vqvae.device), *tensors])
    arrays = [part for part in parts if isinstance(part, np.ndarray)]
    array = np.concatenate([np.empty((0, side, side, 3), dtype=np.uint8), *arrays])
    return array if output_type == "np" else [Image.fromarray(values) for values in array]
