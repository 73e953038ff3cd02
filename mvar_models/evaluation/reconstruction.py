"""Measure how a VQVAE reconstructs images and uses its codes; sets of images that networks make."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mvar_models.data.source import ImageSource
from mvar_models.devices import fit_batch
from mvar_models.evaluation.image_sets import ImageSet, evenly_spaced
from mvar_models.files import replacing
from mvar_models.images import grid, to_pil, to_uint8
from mvar_models.networks.vqvae import VQVAE
from mvar_models.pipeline import Pipeline
from mvar_models.pipeline.identity import determinants, network_identity
from mvar_models.tokens.token_set import TokenSet

_SHOWN = 8
_CHECKED = 16
# Images and pixels decoded at a time: the released decoder holds about 0.3 GB per image of 256 px.
_BATCH, _PIXELS = 8, 8 * 256 * 256
# In dB; a VQVAE that was trained on similar images exceeds 20, and below this an image is hardly told apart.
LEAST_PSNR = 15.0


@dataclass(frozen=True)
class Reconstruction:
    """How a VQVAE did on some images.

    Attributes:
        psnr: Peak signal-to-noise ratio in dB, averaged over images.
        image: Up to eight originals above their reconstructions.
    """

    psnr: float
    image: Image.Image

    def save(self, file: Path) -> None:
        """Write `image` to a PNG, whose folder is created."""
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as temporary:
            self.image.save(temporary)


def reconstruct(vqvae: VQVAE, images: Tensor) -> Reconstruction:
    """Encode and decode images (n, 3, R, R) in [-1, 1], and compare."""
    back = _through(vqvae, images).to(images)
    return Reconstruction(psnr(back, images).mean().item(), side_by_side(images, back))


@torch.no_grad()
def check_reconstruction(
    vqvae: VQVAE, images: ImageSource | ImageSet | Tensor, file: Path, *, name: str, accept: bool = False
) -> Reconstruction:
    """Measure how well a VQVAE reconstructs images, before work that rests on their codes.

    Args:
        vqvae: Encodes and decodes.
        images: A dataset, of which up to 16 images spaced over it are taken, or (n, 3, R, R) in [-1, 1].
        file: The PNG to write where it does not fit: up to eight originals above their reconstructions.
        name: What the error calls the VQVAE.
        accept: Take any VQVAE.

    Raises:
        ValueError: the PSNR is below 15 dB and not accepted, or none of the images can be read.
    """
    if not isinstance(images, Tensor):
        members = evenly_spaced(len(images), _CHECKED)
        if isinstance(images, ImageSet):
            images = _from_uint8(images.read(members)[0])
        else:
            source, (images, _) = images, images.readable(members)
            if not len(images):
                unread, reason = next(iter(source.problems().items()))
                raise ValueError(f"none of {len(members)} images can be read; {unread} {reason}")
    found = reconstruct(vqvae, images)
    if found.psnr < LEAST_PSNR and not accept:
        found.save(file)
        raise ValueError(
            f"{name} reconstructs these images with {found.psnr:.1f} dB PSNR, below the {LEAST_PSNR:.0f} dB "
            f"that codes should keep: look at {file}; take another VQVAE (--vqvae) or train one at the side "
            "of your images (mvar train-vqvae --resolution 32, 64, 128 or 256), or go on with --accept-psnr"
        )
    return found


def side_by_side(originals: Tensor, reconstructions: Tensor) -> Image.Image:
    """Show up to eight originals above their reconstructions; both are (n, 3, R, R) in [-1, 1]."""
    shown = min(_SHOWN, len(originals))
    both = [each[:shown].cpu().float() for each in (originals, reconstructions)]
    return grid(to_pil(torch.cat(both)), columns=shown)


def psnr(images: Tensor, originals: Tensor) -> Tensor:
    """Compute the peak signal-to-noise ratio of each of (n, 3, R, R) images in [-1, 1], in dB: (n,)."""
    error = (images - originals).square().mean(dim=(1, 2, 3)).clamp_min(1e-12)
    return 10 * torch.log10(4 / error)


def code_counts(indices: Tensor, sides: Sequence[int], vocab_size: int) -> Tensor:
    """Count how often each code occurs at each scale: indices (n, L) int64 -> (S, V) float32.

    Args:
        indices: Scales packed coarse to fine.
        sides: Grid side of each of the S scales.
        vocab_size: Number of codes V.
    """
    scales = indices.split([side * side for side in sides], 1)
    return torch.stack([torch.bincount(codes.flatten(), minlength=vocab_size).float() for codes in scales])


def codes_used(counts: Tensor) -> Tensor:
    """Compute the share of the codes that occur at each scale: counts (..., V) -> (...)."""
    return (counts > 0).float().mean(-1)


def perplexity(counts: Tensor) -> Tensor:
    """Compute the number of equally frequent codes with the same entropy: counts (..., V) -> (...)."""
    share = counts / counts.sum(-1, keepdim=True)
    return torch.special.entr(share).sum(-1).exp()


class NetworkImages(ImageSet):
    """Images that networks make when they are read; two sets of equal `identity()` have the same images."""

    def __init__(
        self,
        name: str,
        count: int,
        side: int,
        labels: np.ndarray | None,
        class_names: Sequence[str] | None,
        make: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
        identity: Callable[[], str],
    ) -> None:
        super().__init__(name, count, (side, side), labels, class_names)
        self._make, self._identity = make, identity

    @property
    def digest(self) -> str:
        return hashlib.sha256(self._identity().encode()).hexdigest()

    @torch.no_grad()
    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._make(indices)


def sampled_images(
    pipeline: Pipeline, labels: Sequence[int] | np.ndarray, *, seed: int = 0, name: str = "drawn"
) -> NetworkImages:
    """Return images that a pipeline samples with its own settings, one for each of (N,) labels.

    Image i has seed `seed` + i, so it does not depend on which images are read together or by which process.
    """
    numbers = np.asarray(labels, dtype=np.int64)

    def make(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seeds, count = (seed + indices).tolist(), len(indices)
        images = pipeline(
            numbers[indices].tolist(), seed=seeds, output_type="np", batch_size=max(1, count)
        ).images
        return images, np.arange(count)

    return NetworkImages(
        name, len(numbers), pipeline.vqvae.config.resolution, numbers, pipeline.model.config.class_names,
        make, lambda: f"{determinants(pipeline)} {seed} {numbers.tolist()}",
    )  # fmt: skip


def decoded_images(
    vqvae: VQVAE, tokens: TokenSet, members: np.ndarray, name: str = "decoded"
) -> NetworkImages:
    """Return images as a VQVAE decodes them from stored codes, where the images themselves are not at hand.

    Args:
        vqvae: The VQVAE that made the codes.
        tokens: The codes, of which variant 0 is the image itself.
        members: (N,) the images of `tokens` that make up the set.
        name: What messages call the set.
    """

    def make(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        _, codes = tokens.batch(members[indices])
        return to_uint8(_in_parts(vqvae, codes, vqvae.decode)), np.arange(len(indices))

    return NetworkImages(
        name, len(members), vqvae.config.resolution, tokens.labels[members], None, make,
        lambda: f"{network_identity(vqvae)} {tokens.fingerprint} {members.tolist()}",
    )  # fmt: skip


def reconstructed_images(images: ImageSet, vqvae: VQVAE, name: str) -> NetworkImages:
    """Return images as a VQVAE reconstructs them: the best that a model of its codes could sample.

    Raises:
        ValueError: the images have another size than the VQVAE.
    """
    side = vqvae.config.resolution
    if tuple(images.size) != (side, side):
        height, width = images.size
        raise ValueError(f"{images.name} has {width} x {height} pixels, the VQVAE is for {side} x {side}")

    def make(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        originals, kept = images.read(indices)
        return to_uint8(_through(vqvae, _from_uint8(originals))), kept

    return NetworkImages(
        name, len(images), side, images.labels, images.class_names, make,
        lambda: f"{network_identity(vqvae)} {images.digest}",
    )  # fmt: skip


def _from_uint8(images: np.ndarray) -> Tensor:
    """Convert (n, R, R, 3) of uint8 to (n, 3, R, R) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def _through(vqvae: VQVAE, images: Tensor) -> Tensor:
    return _in_parts(vqvae, images.to(vqvae.dtype), lambda part: vqvae.decode(vqvae.encode(part)))


def _in_parts(vqvae: VQVAE, values: Tensor, decode: Callable[[Tensor], Tensor]) -> Tensor:
    """Decode (n, ...) values, some at a time, on the VQVAE's device: (n, 3, R, R)."""
    side = vqvae.config.resolution
    parts = values.split(fit_batch(_PIXELS, side * side, most=_BATCH))
    images = [decode(part.to(vqvae.device)) for part in parts if len(part)]
    if images:
        return torch.cat(images)
    return torch.empty(0, 3, side, side, dtype=torch.float32, device=vqvae.device)
