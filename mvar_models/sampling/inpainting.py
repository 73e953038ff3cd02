"""Which codes an edited image keeps at each scale: RULES.

`released` is what the programs of VAR and Markov-VAR do. It replays the codes of the whole image, so the
coarse scales and the encoder's receptive field carry what was in the hole into the new image. `closed` hides
the hole from the encoder and corrects, at every scale, what the drawn codes did to the kept cells.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mvar_models.networks.quantizer import MultiScaleQuantizer
from mvar_models.networks.vqvae import VQVAE
from mvar_models.sampling.hooks import GivenCodes

# Up to this many tokens a scale is kept whole by the released rule.
_ALWAYS_KEPT_TOKENS = 3


class ReleasedRule:
    """Kept places take the image's own codes.

    The mask is resized bilinearly to each scale and cut at a half; scales of three tokens or fewer are kept
    whole (VAR's notebook `demo_zero_shot_edit`).

    Args:
        quantizer: The quantizer of the VQVAE.
        indices: (B, L) int64, the codes of the whole images.
        keep: (B, h, h) float32, 1 where the image is kept, at the side of the finest scale.
    """

    def __init__(self, quantizer: MultiScaleQuantizer, indices: Tensor, keep: Tensor) -> None:
        self._quantizer = quantizer
        self._indices = indices.split([side * side for side in quantizer.sides], dim=1)
        self._kept = [self._kept_at(keep, side).flatten(1) for side in quantizer.sides]

    @classmethod
    @torch.no_grad()
    def of(cls, vqvae: VQVAE, images: Tensor, redrawn: Tensor) -> ReleasedRule:
        """Make the rule for images (B, 3, R, R) in [-1, 1] of which `redrawn` (B, R, R) bool is drawn."""
        factor = redrawn.shape[-1] // vqvae.config.sides[-1]
        # A box covers a cell of the finest scale by more than a half where the notebook's rounding keeps it.
        keep = (F.avg_pool2d((~redrawn).float().unsqueeze(1), factor).squeeze(1) > 0.5).float()
        return cls(vqvae.quantizer, vqvae.encode(images.to(vqvae.dtype)), keep)

    @staticmethod
    def _kept_at(keep: Tensor, side: int) -> Tensor:
        if side * side <= _ALWAYS_KEPT_TOKENS:
            return torch.ones(keep.shape[0], side, side, dtype=torch.bool, device=keep.device)
        resized = F.interpolate(keep.unsqueeze(1), size=(side, side), mode="bilinear", align_corners=False)
        return resized.squeeze(1) > 0.5

    def replace(self, scale: int, f_hat: Tensor, codes: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Put the image's codes where it is kept.

        Args:
            scale: Index of the scale.
            f_hat: (B, z, h, h), of the scales before it.
            codes: (B, n * n) int64, as drawn.
            vectors: (B, n * n, z), what is added to f_hat for them.

        Returns:
            The codes and vectors to continue with.
        """
        return _merge(self._quantizer, self._kept[scale], self._indices[scale], codes, vectors)


class ClosedRule:
    """Kept cells are quantized at every scale against the f_hat so far, from an image without its hole.

    A cell is kept only where the image is kept in all of it.

    Args:
        quantizer: The quantizer of the VQVAE.
        features: (B, z, h, h) float32, the encoder's output for the images with their holes filled.
        redrawn: (B, h, h) bool, cells of the finest scale of which any pixel is drawn.
    """

    def __init__(self, quantizer: MultiScaleQuantizer, features: Tensor, redrawn: Tensor) -> None:
        self._quantizer = quantizer
        self._features = features
        drawn = redrawn.unsqueeze(1).float()
        # Adaptive pooling takes the same cells as the "area" resizing of the quantizer.
        self._kept = [F.adaptive_max_pool2d(drawn, side).flatten(1) == 0 for side in quantizer.sides]

    @classmethod
    @torch.no_grad()
    def of(cls, vqvae: VQVAE, images: Tensor, redrawn: Tensor) -> ClosedRule:
        """Make the rule for images (B, 3, R, R) in [-1, 1] of which `redrawn` (B, R, R) bool is drawn."""
        side = vqvae.config.sides[-1]
        features = vqvae.latents(fill_holes(images, redrawn).to(vqvae.dtype)).float()
        cells = F.adaptive_max_pool2d(redrawn.unsqueeze(1).float(), side).squeeze(1) > 0
        return cls(vqvae.quantizer, features, cells)

    def replace(self, scale: int, f_hat: Tensor, codes: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Quantize what f_hat still lacks where the image is kept; see `ReleasedRule.replace`."""
        quantizer = self._quantizer
        own = quantizer.nearest_codes(quantizer.pool(self._features - f_hat, scale))
        return _merge(quantizer, self._kept[scale], own, codes, vectors)


class OwnScales:
    """The coarsest scales are the image's own; finer ones follow another rule, or are drawn.

    For models that carry something from scale to scale, and so have to see the coarse codes.

    Args:
        quantizer: The quantizer of the VQVAE.
        indices: (B, L) int64, the codes of the images.
        count: How many scales are kept.
        then: The rule of the others; None draws them.
    """

    def __init__(
        self, quantizer: MultiScaleQuantizer, indices: Tensor, count: int, then: GivenCodes | None = None
    ) -> None:
        self._quantizer, self._count, self._then = quantizer, count, then
        self._indices = indices.split([side * side for side in quantizer.sides], dim=1)

    def replace(self, scale: int, f_hat: Tensor, codes: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Put the image's codes at a coarse scale; see `ReleasedRule.replace`."""
        if scale < self._count:
            own = self._indices[scale]
            return own, self._quantizer.codebook(own).to(vectors.dtype)
        return (codes, vectors) if self._then is None else self._then.replace(scale, f_hat, codes, vectors)


RULES: dict[str, type[ClosedRule] | type[ReleasedRule]] = {"closed": ClosedRule, "released": ReleasedRule}


def check_rule(rule: str) -> None:
    """Raise ValueError unless there is a rule of that name."""
    if not isinstance(rule, str) or rule not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}, got {rule!r}")


def _merge(
    quantizer: MultiScaleQuantizer, kept: Tensor, own: Tensor, codes: Tensor, vectors: Tensor
) -> tuple[Tensor, Tensor]:
    own_vectors = quantizer.codebook(own).to(vectors.dtype)
    return torch.where(kept, own, codes), torch.where(kept.unsqueeze(-1), own_vectors, vectors)


def fill_holes(images: Tensor, holes: Tensor) -> Tensor:
    """Fill holes smoothly by pull-push: every level of an image pyramid fills what the coarser one left.

    Args:
        images: (B, c, H, W).
        holes: (B, H, W) bool.

    Returns:
        (B, c, H, W): the images outside the holes, their surroundings inside. All zero where the hole is the
        whole image.

    Source: Gortler et al., The Lumigraph (1996), section 3.4.
    """
    known = (~holes).unsqueeze(1).to(images.dtype)
    return _filled(images * known, known)


def _filled(images: Tensor, known: Tensor) -> Tensor:
    """Fill where `known` (B, 1, H, W) is 0; `images` is 0 there."""
    height, width = images.shape[-2:]
    if height == 1 and width == 1:
        return images
    # ceil_mode keeps the last row of an odd side; it divides by the number of pixels inside the image.
    share = F.avg_pool2d(known, 2, ceil_mode=True, count_include_pad=False)
    sums = F.avg_pool2d(images, 2, ceil_mode=True, count_include_pad=False)
    means = torch.where(share > 0, sums / share.clamp_min(torch.finfo(share.dtype).tiny), 0.0)
    coarse = _filled(means, (share > 0).to(known.dtype))
    smooth = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    return torch.where(known > 0, images, smooth)
