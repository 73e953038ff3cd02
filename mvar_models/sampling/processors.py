"""Processors of logits, `sample(..., processors=[...])`: callables as `hooks.LogitsProcessor` describes.

A processor sees the guided logits of every scale before the filters, for some images of the batch at a time.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from mvar_models.records import converted
from mvar_models.sampling.hooks import Choice


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

    def __call__(self, logits: Tensor, choice: Choice) -> Tensor:
        if choice.images.start == 0:
            follows = choice.scale > choice.scales.start
            self._before = torch.cat(self._current) if follows else None
            self._current = []
        if choice.scale + 1 < choice.scales.stop:
            self._current.append(logits)
        if self._before is None:
            return logits
        before = self._before[choice.images]
        low = _resize(before.shape[1], logits.shape[1]).to(logits) @ before
        return logits + self.beta * (logits - low)


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)  # it outlives the call
def _resize(old: int, new: int) -> Tensor:
    """Return the matrix (new, old) that resizes a square grid of `old` values bilinearly to one of `new`."""
    old_side, new_side = round(old**0.5), round(new**0.5)
    units = torch.eye(old, dtype=torch.float32, device="cpu").view(old, 1, old_side, old_side)
    return F.interpolate(units, size=(new_side, new_side), mode="bilinear").view(old, new).t().contiguous()
