"""What can be hooked into the loop over scales: the types that `sample` takes and hands out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mvar_models.networks.quantizer import MultiScaleQuantizer

# Called with the index of a scale and f_hat (B, z, h, h) after it; a tensor that it returns replaces f_hat.
ScaleCallback = Callable[[int, Tensor], object]


class StopSampling(Exception):
    """Raised by an `on_scale` callback to end the loop; the scales drawn so far are the result."""


@dataclass(frozen=True)
class Choice:
    """What a sampler knows when it chooses the codes of one scale for b images of the batch.

    Attributes:
        scale: Index of the scale; 0 is the coarsest.
        progress: Position of the scale, from 0 (coarsest) to 1 (finest).
        images: Which images of the batch these are. Images come in order, so a scale begins where `images`
            starts at 0.
        uniform: (b, n) float32 in [0, 1), one number per token.
        generators: CPU generators of these images, for further random numbers.
        top_k: See `filter_logits`.
        top_p: See `filter_logits`.
        quantizer: Holds the codebook.
        labels: (b,) int64, the classes of these images.
        f_hat: (b, z, h, h) float32, the sum over the scales before this one.
        scales: The scales that are drawn.
    """

    scale: int
    progress: float
    images: slice
    uniform: Tensor
    generators: Sequence[torch.Generator]
    top_k: int
    top_p: float
    quantizer: MultiScaleQuantizer
    labels: Tensor
    f_hat: Tensor
    scales: range


class LogitsProcessor(Protocol):
    """Changes the guided logits of a scale before the filters; `processors.py` has one."""

    def __call__(self, logits: Tensor, choice: Choice) -> Tensor:
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
