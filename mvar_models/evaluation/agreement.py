"""Does a drawn image look like its class? Judged by the reference image nearest to it."""

from __future__ import annotations

import torch

from mvar_models.evaluation.comparison import Comparison
from mvar_models.evaluation.nearest import Nearest


def label_agreement(comparison: Comparison) -> dict[str, float]:
    """Return the share of drawn images whose nearest reference image is of their own class.

    Real images do not reach 1 either; evaluate held-out ones with the same reference to know what they reach.
    """
    drawn, reference = comparison.labels()
    first, second = comparison.features()
    nearest = Nearest(first)
    nearest.update(second, torch.arange(len(second), device="cpu"))
    found = reference[nearest.indices.cpu().numpy()]
    return {"label_agreement": float((found == drawn).mean())}
