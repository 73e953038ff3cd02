"""Images of an evaluation: nearest training images, and the worst and best classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mvar_models.evaluation.comparison import Comparison
from mvar_models.evaluation.image_sets import ImageSet
from mvar_models.files import replacing
from mvar_models.images import grid

_COLUMNS, _CLASSES = 8, 4
# Smaller images are enlarged for the eye.
_LEAST_SIDE = 64


def write_images(
    comparison: Comparison, results: dict[str, Any], training: ImageSet | None, folder: Path
) -> None:
    """Write neighbours.png and classes.png, each where the images for it are at hand.

    Args:
        comparison: The two sets.
        results: What `evaluate` found, with `per_class`.
        training: The training set; None is the reference.
        folder: Where to write.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn, reference = comparison.drawn.images, comparison.reference.images
    others = training or reference
    if comparison.training is not None and drawn is not None and others is not None:
        _save(_neighbours(comparison, drawn, others), folder / "neighbours.png")
    if drawn is not None and len(results.get("per_class", [])) > 1:
        _save(_classes(comparison, results["per_class"], drawn), folder / "classes.png")


def _neighbours(comparison: Comparison, drawn: ImageSet, training: ImageSet) -> list[Image.Image]:
    """Four rows: the drawn images closest to training above those, and a spread of all above theirs."""
    found = comparison.training
    assert found is not None
    order = np.argsort(found.distances, kind="stable")
    columns = min(_COLUMNS, len(order))
    spread = order[np.linspace(0, len(order) - 1, columns).astype(np.int64)]
    rows = []
    for chosen in (order[:columns], spread):
        rows += _read(drawn, comparison.drawn.indices[chosen]) + _read(training, found.indices[chosen])
    return rows


def _classes(comparison: Comparison, figures: list[dict[str, Any]], drawn: ImageSet) -> list[Image.Image]:
    """A row of drawn images for each of the worst classes, then for each of the best."""
    count = min(_CLASSES, len(figures) // 2)
    labels = comparison.drawn.labels
    assert labels is not None
    rows = []
    for each in figures[:count] + figures[-count:]:
        members = comparison.drawn.indices[np.flatnonzero(labels == each["label"])][:_COLUMNS]
        images = _read(drawn, members)
        blank = Image.new("RGB", images[0].size, "white")
        rows += images + [blank] * (_COLUMNS - len(images))
    return rows


def _read(images: ImageSet, indices: np.ndarray) -> list[Image.Image]:
    found, _ = images.read(indices)
    factor = max(1, _LEAST_SIDE // max(found.shape[1:3]))
    return [
        Image.fromarray(image).resize(
            (image.shape[1] * factor, image.shape[0] * factor), Image.Resampling.NEAREST
        )
        for image in found
    ]


def _save(images: list[Image.Image], file: Path) -> None:
    with replacing(file) as temporary:
        grid(images, columns=min(_COLUMNS, len(images))).save(temporary, format="png")
