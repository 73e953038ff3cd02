"""How well a VQVAE reconstructs images, in numbers and side by side."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mvar_models.data.source import ImageSource
from mvar_models.devices import fit_batch
from mvar_models.evaluation.image_sets import ImageSet
from mvar_models.files import replacing
from mvar_models.images import grid, to_pil, to_uint8
from mvar_models.networks.vqvae import VQVAE
from mvar_models.pipeline.identity import network_identity

_SHOWN = 8
_CHECKED = 16
# Images and pixels decoded at a time: the released decoder holds about 0.3 GB per image of 256 px.
_BATCH, _PIXELS = 8, 8 * 256 * 256
# A VQVAE that was trained on similar images is far above both: released ones exceed 20 dB on photographs.
_POOR = 18.0
_OVER_FLAT = 3.0


@dataclass(frozen=True)
class Reconstruction:
    """How a VQVAE did on some images.

    Attributes:
        psnr: Peak signal-to-noise ratio in dB, averaged over images.
        flat: The same for images replaced by their mean colour, which a VQVAE must beat by far.
        image: Up to eight originals above their reconstructions.
    """

    psnr: float
    flat: float
    image: Image.Image

    @property
    def fits(self) -> bool:
        """Whether the VQVAE suits such images: 18 dB, or 3 dB more than their mean colours would give."""
        return self.psnr >= _POOR or self.psnr >= self.flat + _OVER_FLAT


def reconstruct(vqvae: VQVAE, images: Tensor) -> Reconstruction:
    """Encode and decode images (n, 3, R, R) in [-1, 1], and compare."""
    parts = images.split(fit_batch(_PIXELS, vqvae.config.resolution**2, most=_BATCH))
    back = torch.cat(
        [vqvae.decode(vqvae.encode(part.to(vqvae.device, vqvae.dtype))).to(images) for part in parts]
    )
    flat = images.mean((2, 3), keepdim=True).expand_as(images)
    return Reconstruction(
        psnr(back, images).mean().item(), psnr(flat, images).mean().item(), side_by_side(images, back)
    )


def check_reconstruction(vqvae: VQVAE, source: ImageSource, file: Path) -> Reconstruction:
    """Measure how well a VQVAE fits a dataset, from up to 16 images spread over it, and draw eight of them.

    Args:
        vqvae: encodes and decodes.
        source: gives the images.
        file: the PNG to write.

    Raises:
        ValueError: none of the images can be read.
    """
    images, _ = source.readable(np.unique(np.linspace(0, len(source) - 1, _CHECKED).astype(np.int64)))
    if not len(images):
        name, reason = next(iter(source.problems().items()))
        raise ValueError(f"none of {min(_CHECKED, len(source))} images can be read; {name} {reason}")
    found = reconstruct(vqvae, images)
    with replacing(file) as temporary:
        found.image.save(temporary)
    return found


def side_by_side(originals: Tensor, reconstructions: Tensor) -> Image.Image:
    """Draw up to eight originals above their reconstructions; both are (n, 3, R, R) in [-1, 1]."""
    shown = min(_SHOWN, len(originals))
    return grid(
        to_pil(torch.cat([originals[:shown].cpu().float(), reconstructions[:shown].cpu().float()])),
        columns=shown,
    )


def psnr(images: Tensor, originals: Tensor) -> Tensor:
    """Compute the peak signal-to-noise ratio of each of (n, 3, R, R) images in [-1, 1], in dB: (n,)."""
    error = (images - originals).square().mean(dim=(1, 2, 3)).clamp_min(1e-12)
    return 10 * torch.log10(4 / error)


class Reconstructions:
    """A set of images as a VQVAE reconstructs them: the best that a model of its codes could draw.

    Args:
        images: The originals, of the VQVAE's resolution.
        vqvae: Encodes and decodes.
        name: What tables call the set.

    Raises:
        ValueError: the images have another size.
    """

    def __init__(self, images: ImageSet, vqvae: VQVAE, name: str) -> None:
        side = vqvae.config.resolution
        if tuple(images.size) != (side, side):
            height, width = images.size
            raise ValueError(f"{images.name} has {width} x {height} pixels, the VQVAE is for {side} x {side}")
        self._originals, self._vqvae = images, vqvae
        self.name = name
        self.labels = images.labels
        self.class_names = getattr(images, "class_names", None)
        self.size = images.size

    def __len__(self) -> int:
        return len(self._originals)

    @property
    def digest(self) -> str:
        return hashlib.sha256(
            f"{network_identity(self._vqvae)} {self._originals.digest}".encode()
        ).hexdigest()

    @torch.no_grad()
    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read originals, encode and decode them; as `ImageSet.read`."""
        originals, kept = self._originals.read(indices)
        values = torch.from_numpy(originals).permute(0, 3, 1, 2).float() / 127.5 - 1
        parts = values.split(fit_batch(_PIXELS, self._vqvae.config.resolution**2, most=_BATCH))
        decoded = [
            to_uint8(self._vqvae.decode(self._vqvae.encode(part.to(self._vqvae.device, self._vqvae.dtype))))
            for part in parts
        ]
        return np.concatenate([np.empty((0, *self.size, 3), dtype=np.uint8), *decoded]), kept
