"""How far figures would move with other drawn images: resampling with replacement (Efron 1979).

A resample repeats images, so it has fewer different ones, and its Frechet distance is larger than that of
the set itself. Its percentiles would not contain the figure; so intervals are the figure plus and minus 1.96
deviations of the resamples, and never below 0, where none of the figures goes.
"""

from __future__ import annotations

import numpy as np

from mvar_models.evaluation.comparison import Comparison, Unavailable
from mvar_models.evaluation.moments import Moments
from mvar_models.evaluation.nearest import copy_distance
from mvar_models.evaluation.neighbours import COVERAGE_NEIGHBOURS

_NORMAL = 1.96
_SEED = 0


def bootstrap_intervals(comparison: Comparison, times: int) -> dict[str, dict[str, float]]:
    """Resample the drawn images.

    Args:
        comparison: The two sets, with features.
        times: Number of resamples, at least 2.

    Returns:
        `deviation`, `low` and `high` of `fd` and of the shares of drawn images: `precision`, `density`,
        `near_copies`. Recall and coverage are shares of reference images, which stay as they are.

    Raises:
        ValueError: fewer than two resamples, or the features were not kept.
    """
    if times < 2:
        raise ValueError(f"bootstrap must be 0, or at least 2, got {times}")
    drawn = comparison.drawn
    if drawn.features is None:
        raise ValueError("bootstrap needs the drawn images' features, which were not kept")
    features = drawn.features.double().numpy()
    per_image: dict[str, np.ndarray] = {}
    try:
        near = comparison.neighbourhoods
        per_image = {
            "precision": near.inside.double().numpy(),
            "density": near.around.double().numpy() / COVERAGE_NEIGHBOURS,
        }
    except Unavailable:
        pass
    if comparison.training is not None:
        limit = copy_distance(comparison.training.real)
        per_image["near_copies"] = (comparison.training.distances <= limit).astype(float)
    rng = np.random.default_rng(_SEED)
    found: dict[str, list[float]] = {name: [] for name in ("fd", *per_image)}
    for _ in range(times):
        chosen = rng.integers(0, len(features), len(features))
        found["fd"].append(comparison.frechet.distance(Moments.of(features[chosen])))
        for name, values in per_image.items():
            found[name].append(float(values[chosen].mean()))
    figures = {"fd": comparison.frechet.distance(drawn.moments)}
    figures |= {name: float(values.mean()) for name, values in per_image.items()}
    return {name: _interval(figures[name], values) for name, values in found.items()}


def _interval(figure: float, resampled: list[float]) -> dict[str, float]:
    deviation = float(np.std(resampled, ddof=1))
    low = max(figure - _NORMAL * deviation, 0.0)
    return {"deviation": deviation, "low": low, "high": figure + _NORMAL * deviation}
