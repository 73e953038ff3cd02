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
        {"per_class": figures}, one entry per class, worst distance first: `label` in the drawn set and, if
        known, `name`, `count`, `fd`, the `precision` of its images within the whole reference, and the median
        `nearest_distance`.

    Raises:
        ValueError: `strict`, and the classes of a set are not known.
    """
    drawn, reference = comparison.drawn, comparison.reference
    try:
        first_labels, second_labels = comparison.labels()
    except Unavailable as error:
        if strict:
            raise ValueError(f"per_class: {error}") from None
        return {}
    if drawn.features is None or reference.features is None:
        return {}
    try:
        inside = comparison.neighbourhoods.inside.numpy()
    except Unavailable:
        inside = None
    first, second = drawn.features.numpy(), reference.features.numpy()
    found = []
    for label in np.intersect1d(first_labels, second_labels):
        ours, theirs = np.flatnonzero(first_labels == label), np.flatnonzero(second_labels == label)
        if min(len(ours), len(theirs)) < 2:
            continue
        figures: dict[str, Any] = {"label": int(label), "count": len(ours)}
        if drawn.class_names is not None:
            figures["name"] = drawn.class_names[label]
        figures["fd"] = frechet_distance(first[ours], second[theirs])
        if inside is not None:
            figures["precision"] = float(inside[ours].mean())
        if comparison.training is not None:
            figures["nearest_distance"] = float(np.median(comparison.training.distances[ours]))
        found.append(figures)
    return {"per_class": sorted(found, key=lambda figures: -figures["fd"])}
