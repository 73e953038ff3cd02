"""Classifier-free guidance, whose weight may change from scale to scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from mvar_models.networks.state import ScaleState
from mvar_models.networks.transformer import ScaleTransformer

# Name -> share of the guidance scale at a progress from 0 (coarsest scale) to 1 (finest).
SCHEDULES: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: progress,
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: (1 - math.cos(math.pi * progress)) / 2,
}
RELEASED_SCHEDULE = "linear"


def is_guided(model: ScaleTransformer, guidance_scale: float) -> bool:
    """Return whether sampling needs an unconditional pass; released programs differ in when they skip it."""
    return guidance_scale not in (0.0, model.skips_guidance_at)


def progress_of(scale: int, num_scales: int) -> float:
    """Position of a scale from 0 (coarsest) to 1 (finest)."""
    return scale / max(num_scales - 1, 1)


def check_schedule(schedule: str) -> None:
    """Raise ValueError unless there is a schedule of that name."""
    if not isinstance(schedule, str) or schedule not in SCHEDULES:
        raise ValueError(f"guidance_schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")


def guidance_weight(guidance_scale: float, progress: float, schedule: str = RELEASED_SCHEDULE) -> float:
    """Weight of the guidance at a scale; as released it is zero at the coarsest and grows linearly.

    Raises:
        ValueError: no schedule of that name.
    """
    check_schedule(schedule)
    return guidance_scale * SCHEDULES[schedule](progress)


def guidance_weights(
    model: ScaleTransformer,
    guidance_scale: float | Sequence[float],
    schedule: str = RELEASED_SCHEDULE,
) -> tuple[float, ...] | None:
    """Return the weight of the guidance at every scale, or None if no scale needs an unconditional pass.

    Args:
        model: The transformer.
        guidance_scale: Weight at the finest scale, or one weight per scale, which need no schedule.
        schedule: A name in `SCHEDULES`.

    Raises:
        ValueError: an unknown schedule, or a sequence of another length than the model has scales.
    """
    count = len(model.config.sides)
    if isinstance(guidance_scale, Sequence):
        if len(guidance_scale) != count:
            raise ValueError(
                f"guidance_scale as a sequence must have one weight per scale ({count}), "
                f"got {len(guidance_scale)}"
            )
        weights = tuple(float(weight) for weight in guidance_scale)
        return weights if any(weights) else None
    weights = tuple(guidance_weight(guidance_scale, progress_of(s, count), schedule) for s in range(count))
    # What the released programs leave out belongs to their schedule.
    guided = is_guided(model, guidance_scale) if schedule == RELEASED_SCHEDULE else guidance_scale != 0
    return weights if guided else None


def combine(conditional: Tensor, unconditional: Tensor, weight: float) -> Tensor:
    """Extrapolate from the unconditional logits past the conditional ones: (1 + weight) c - weight u."""
    return (1 + weight) * conditional - weight * unconditional


def guided_logits(
    model: ScaleTransformer, hidden: Tensor, state: ScaleState, images: slice, batch: int, weight: float
) -> Tensor:
    """Compute the logits of some images of a batch.

    Args:
        model: The transformer.
        hidden: (B, n, C) states before the head, or (2 B, n, C) with the unconditional rows after the others;
            the latter if `weight` is not 0.
        state: The state that `hidden` was computed with.
        images: Which of the B images.
        batch: B.
        weight: See `combine`; 0 without guidance.

    Returns:
        (b, n, V) float32.
    """
    conditional = model.step_logits(hidden, state, images)
    if weight == 0:
        return conditional
    below = slice(batch + images.start, batch + images.stop)
    return combine(conditional, model.step_logits(hidden, state, below), weight)
