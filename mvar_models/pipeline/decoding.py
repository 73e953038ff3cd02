"""From latents to images in the type that the caller asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mvar_models.images import to_uint8
from mvar_models.networks.vqvae import VQVAE

Images = list[Image.Image] | np.ndarray | Tensor
Decoded = np.ndarray | Tensor

_OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def check_output_type(output_type: str) -> None:
    """Raise ValueError unless the type of images is known."""
    if output_type not in _OUTPUT_TYPES:
        raise ValueError(f"output_type must be one of {', '.join(_OUTPUT_TYPES)}, got {output_type!r}")


def decode(vqvae: VQVAE, f_hat: Tensor, output_type: str, images: Tensor | None = None) -> Decoded:
    """Decode latents a few at a time: float32 in [0, 1] on the model's device for "pt", else uint8.

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
