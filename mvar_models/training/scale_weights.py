"""How much each scale counts in the loss of a transformer.

The mean over tokens gives a scale as much weight as it has tokens: at 256 px the last of ten has .376 of all.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch
from torch import Tensor


def scale_densities(sides: Sequence[int]) -> list[float]:
    """Return the weight of each scale, which sum to 1: normal densities of the reversed sides, standardised.

    As in HMAR (arXiv 2506.04421).

    Args:
        sides: Grid side of each scale, coarse to fine.
    """
    spread = statistics.stdev(sides) if len(sides) > 1 else 0.0
    if spread == 0:
        return [1 / len(sides)] * len(sides)
    standard = statistics.NormalDist(statistics.mean(sides), spread)
    densities = [standard.pdf(side) for side in reversed(sides)]
    return [density / sum(densities) for density in densities]


def token_weights(name: str, sides: Sequence[int]) -> Tensor | None:
    """Return the weight of each token (L,), which sum to 1; None for the plain mean.

    Args:
        name: One of `SCALE_WEIGHTS` in `mvar_models.training.settings`.
        sides: Grid side of each scale, coarse to fine.
    """
    if name == "tokens":
        return None
    each = torch.tensor(
        [weight / side**2 for weight, side in zip(scale_densities(sides), sides)],
        dtype=torch.float32,
        device="cpu",
    )
    return each.repeat_interleave(torch.tensor([side**2 for side in sides], device="cpu"))
