"""Hooks into the loop over scales: the types that `sample` takes and hands out, and a processor of logits."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mvar_models.networks.quantizer import MultiScaleQuantizer
from mvar_models.records import converted
from mvar_models.sampling.settings import SamplingSettings

# Called with the index of a scale and f_hat (B, z, h, h) after it; a tensor that it returns replaces f_hat.
ScaleCallback = Callable[[int, Tensor], object]


class StopSampling(Exception):
    """Raised by an `on_scale` callback to end the loop; the scales drawn so far are the result."""


@dataclass(frozen=True)
class ScaleContext:
    """Describe one scale of b images of the batch to samplers and processors.

    Attributes:
        scale: Index of the scale; 0 is the coarsest.
        progress: Position of the scale, from 0 (coarsest) to 1 (finest).
        images: Which images of the batch these are. Images come in order, so a scale begins where `images`
            starts at 0.
        uniform: (b, n) float32 in [0, 1), one number per token.
        generators: CPU generators of these images, for further random numbers.
        settings: Settings of the call.
        quantizer: Holds the codebook.
        labels: (b,) int64, the classes of these images.
        f_hat: (b, z, h, h) float32, the sum over the scales before this one.
        scales: The scales that are drawn.
        whole: The context of all images of the batch; None in that one itself.
    """

    scale: int
    progress: float
    images: slice
    uniform: Tensor
    generators: Sequence[torch.Generator]
    settings: SamplingSettings
    quantizer: MultiScaleQuantizer
    labels: Tensor
    f_hat: Tensor
    scales: range
    whole: ScaleContext | None = None

    def part(self, images: slice) -> ScaleContext:
        """Return the context of some of the images."""
        return replace(
            self, images=images, uniform=self.uniform[images], generators=self.generators[images],
            labels=self.labels[images], f_hat=self.f_hat[images], whole=self,
        )  # fmt: skip


class LogitsProcessor(Protocol):
    """Changes the guided logits of a scale before the filters, for some images of the batch at a time."""

    def __call__(self, logits: Tensor, context: ScaleContext) -> Tensor:
        """Return logits (b, n, V) float32, and leave those it is given as they are."""


class GivenCodes(Protocol):
    """Codes that are known and not drawn, such as those of the kept part of an edited image."""

    def replace(self, scale: int, f_hat: Tensor, codes: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Put known codes and vectors in the place of those drawn.

        Called once per scale for the whole batch, after the choice and before its contribution to f_hat.

        Args:
            scale: Index of the scale.
            f_hat: (B, z, h, h), the sum over the scales before this one.
            codes: (B, n) int64, as drawn.
            vectors: (B, n, z), as drawn.

        Returns:
            codes and vectors, shaped alike.
        """


class SpatialGuidance:
    """Sharpens a scale by what it adds to the scale before: logits + beta (logits - low), as SSG.

    `low` are the previous scale's logits, resized bilinearly to this scale, so the difference is what is new
    in this one. The coarsest scale drawn has nothing before it and stays as it is. After SSG (arXiv
    2602.05534), whose code is unpublished; beta and the low-pass are not theirs.

    Args:
        beta: Strength; 0 changes nothing.
    """

    # It keeps the logits of one scale for the whole batch: 2.6 MB per image of 256 px at the last scale
    # (169 tokens of 4,096 codes).

    def __init__(self, beta: float) -> None:
        self.beta: float = converted(beta, float, "beta")
        self._before: Tensor | None = None
        self._current: list[Tensor] = []

    def __call__(self, logits: Tensor, context: ScaleContext) -> Tensor:
        if context.images.start == 0:
            follows = context.scale > context.scales.start
            self._before = torch.cat(self._current) if follows else None
            self._current = []
        if context.scale + 1 < context.scales.stop:
            self._current.append(logits)
        if self._before is None:
            return logits
        before = self._before[context.images]
        low = _resize(before.shape[1], logits.shape[1]).to(logits) @ before
        return logits + self.beta * (logits - low)


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)  # it outlives the call
def _resize(old: int, new: int) -> Tensor:
    """Return the matrix (new, old) that resizes a square grid of `old` values bilinearly to one of `new`."""
    old_side, new_side = round(old**0.5), round(new**0.5)
    units = torch.eye(old, dtype=torch.float32, device="cpu").view(old, 1, old_side, old_side)
    return F.interpolate(units, size=(new_side, new_side), mode="bilinear").view(old, new).t().contiguous()
