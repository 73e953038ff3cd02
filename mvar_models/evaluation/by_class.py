"""Figures of each class, where the classes of both sets are known."""

from __future__ import annotations

from typing import Any

import numpy as np

from mvar_models.evaluation.comparison import Comparison, Unavailable
from mvar_models.evaluation.frechet import frechet_distance


def by_class(comparison: Comparison, *, strict: bool = False) -> dict[str, Any]:
    """Compute figures of each class that both sets have.

    A class has few images, so that its Frechet distance is too large; it ranks classes with equal numbers of
    images, and is not to be compared with that of the whole set.

    Args:
        comparison: The two sets.
        strict: Raise where the classes are not known, instead of returning nothing.

    Returns:
        {"per_class": figures}, one entry per class, worst distance first: `label`, `count`, `fd`, the
        `precision` of its images within the whole reference, and the median `nearest_distance`.

    Raises:
        ValueError: `strict`, and the classes of a set are not known.
    """
    drawn, reference = comparison.drawn, comparison.reference
    for summary in (drawn, reference):
        if summary.labels is None or summary.features is None:
            if strict:
                raise ValueError(
                    f"per_class: {summary.name} has no labels; a folder per class has, "
                    "and an .npz with arr_1 or labels"
                )
            return {}
    assert drawn.features is not None and reference.features is not None
    assert drawn.labels is not None and reference.labels is not None
    try:
        inside = comparison.neighbourhoods.inside.numpy()
    except Unavailable:
        inside = None
    first, second = drawn.features.numpy(), reference.features.numpy()
    found = []
    for label in np.intersect1d(drawn.labels, reference.labels):
        ours, theirs = np.flatnonzero(drawn.labels == label), np.flatnonzero(reference.labels == label)
        if min(len(ours), len(theirs)) < 2:
            continue
        figures: dict[str, Any] = {"label": int(label), "count": len(ours)}
        figures["fd"] = frechet_distance(first[ours], second[theirs])
        if inside is not None:
            figures["precision"] = float(inside[ours].mean())
        if comparison.training is not None:
            figures["nearest_distance"] = float(np.median(comparison.training.distances[ours]))
        found.append(figures)
    return {"per_class": sorted(found, key=lambda figures: -figures["fd"])}
