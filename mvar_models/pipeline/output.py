"""What a call returns with `return_dict=True`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mvar_models.config import TransformerConfig
from mvar_models.pipeline.decoding import Images
from mvar_models.sampling.sampler import SampleResult


@dataclass
class PipelineOutput:
    """Images and the codes behind them.

    Attributes:
        images: As `output_type` says: PIL images, an array or a tensor.
        indices: (B, L) int64, the codes of every scale; of an edit, of the square that was drawn.
        latents: (B, z, h, h) float32, f_hat, which the decoder takes.
        scales: The images after each scale, with `return_scales`; otherwise None.
    """

    images: Images
    indices: Tensor
    latents: Tensor
    scales: list[Images] | None = None

    @classmethod
    def of(
        cls,
        images: Images,
        batches: Sequence[SampleResult],
        config: TransformerConfig,
        device: torch.device,
        scales: list[Images] | None = None,
    ) -> PipelineOutput:
        """Join the codes of all batches, of which there may be none."""
        if not batches:
            z, h = config.z_channels, config.sides[-1]
            indices = torch.empty(0, config.length, dtype=torch.int64, device=device)
            return cls(images, indices, torch.empty(0, z, h, h, dtype=torch.float32, device=device), scales)
        indices, latents = (
            torch.cat(parts) for parts in zip(*((batch.indices, batch.f_hat) for batch in batches))
        )
        return cls(images, indices, latents, scales)
