"""Classifier-free guidance whose weight grows linearly with the scale."""

from __future__ import annotations

import torch
from torch import Tensor

from mvar_models.networks.transformer import ScaleTransformer


def is_guided(model: ScaleTransformer, guidance_scale: float) -> bool:
    """Return whether sampling needs an unconditional pass; released programs differ in when they skip it."""
    return guidance_scale not in (0.0, model.skips_guidance_at)


def progress_of(scale: int, num_scales: int) -> float:
    """Position of a scale from 0 (coarsest) to 1 (finest)."""
    return scale / max(num_scales - 1, 1)


def guidance_weight(guidance_scale: float, progress: float) -> float:
    """Weight of the guidance at a scale: zero at the coarsest, `guidance_scale` at the finest."""
    return guidance_scale * progress


def combine(conditional: Tensor, unconditional: Tensor, weight: float) -> Tensor:
    """Extrapolate from the unconditional logits past the conditional ones: (1 + weight) c - weight u."""
    return (1 + weight) * conditional - weight * unconditional


def with_unconditional(labels: Tensor, num_classes: int) -> Tensor:
    """Append the unconditional class once per label: (B,) -> (2 B,), conditional rows first."""
    return torch.cat([labels, torch.full_like(labels, num_classes)])


def guided_logits(
    model: ScaleTransformer, hidden: Tensor, class_embedding: Tensor, images: slice, weight: float | None
) -> Tensor:
    """Compute the logits of some images of a batch.

    Args:
        model: The transformer.
        hidden: (B, n, C) states before the head, or (2 B, n, C) with the unconditional rows after the others.
        class_embedding: (B, C) or (2 B, C), in the same order.
        images: Which of the B images.
        weight: See `combine`; None without guidance, and then there are no unconditional rows.

    Returns:
        (b, n, V) float32.
    """
    if weight is None:
        return model.logits(hidden[images], class_embedding[images])
    batch = hidden.shape[0] // 2
    conditional = model.logits(hidden[:batch][images], class_embedding[:batch][images])
    unconditional = model.logits(hidden[batch:][images], class_embedding[batch:][images])
    return combine(conditional, unconditional, weight)
