"""Results of `evaluate` as a table, and images of them: nearest training images, worst and best classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mvar_models.evaluation.comparison import Comparison
from mvar_models.evaluation.image_sets import ImageSet, evenly_spaced
from mvar_models.files import numbered, replacing
from mvar_models.images import grid, sheet

_FIGURES = (
    ("sfd", "sFID", "{:.2f}"),
    ("is", "IS", "{:.2f}"),
    ("precision", "precision", "{:.3f}"),
    ("recall", "recall", "{:.3f}"),
    ("density", "density", "{:.3f}"),
    ("coverage", "coverage", "{:.3f}"),
    ("kid", "KID x 1000", "{:.2f}"),
    ("near_copies", "near-copies", "{:.1%}"),
    ("label_agreement", "own class", "{:.1%}"),
    ("class_diversity", "diversity", "{:.3f}"),
)
_TABLE_CLASSES = 3
_COLUMNS, _IMAGE_CLASSES = 8, 4
# Smaller images are enlarged for the eye.
_LEAST_SIDE = 64


def table(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a table of `evaluate`'s results, one row per drawn set.

    A figure that no set has gets no column.

    Args:
        results: One dict per drawn set, all with the same features and reference.
    """
    columns = [("fd", results[0]["distance"], "{:.2f}"), *_FIGURES]
    columns = [column for column in columns if any(each.get(column[0]) is not None for each in results)]
    rows = [["drawn", "images", *(title for _, title, _ in columns)]]
    for each in results:
        cells = [each["sets"]["drawn"]["name"], f"{each['counts']['drawn']:,}"]
        rows.append(cells + [_cell(each, name, pattern) for name, _, pattern in columns])
    widths = [max(map(len, column)) for column in zip(*rows)]
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:]))]
        yield "  ".join(cells).rstrip()
    yield from _notes(results)
    yield from _reasons(results)


def _cell(result: dict[str, Any], name: str, pattern: str) -> str:
    value = result.get(name)
    if value is None:
        return "-"
    factor = 1000 if name == "kid" else 1
    shown = pattern.format(value * factor)
    deviation = result.get("intervals", {}).get(name, {}).get("deviation", result.get(f"{name}_deviation"))
    return shown if deviation is None else f"{shown} ± {pattern.format(deviation * factor)}"


def _notes(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    first = results[0]
    reference, counts = first["sets"]["reference"], first["counts"]
    count = "an unknown number of" if counts["reference"] is None else f"{counts['reference']:,}"
    yield f"reference: {reference['name']}, {count} images; distances of neighbours in {first['distances']}"
    if first["near_copies"] is not None:
        training = first["sets"]["training"]
        yield (
            f"near-copies: at most {first['near_copy_distance']:.3g} from an image of {training['name']}, "
            f"as 5 % of the real images ({training['real']}) are"
        )
    if any(each.get("label_agreement") is not None for each in results):
        yield "own class: the nearest image of the reference is of the same class"
    if any(each.get("class_diversity") is not None for each in results):
        yield "diversity: how far apart images of one class are, 1 as in the reference"
    if any(each["order"] == "permuted" for each in results):
        yield "the Inception score's splits are a fixed permutation, because the file is sorted by class"
    for each in results:
        name = each["sets"]["drawn"]["name"]
        classes = each.get("per_class") or []
        if len(classes) > 1:
            shown = min(_TABLE_CLASSES, len(classes) // 2)
            yield f"{name}: worst classes {_classes(classes[:shown])}; best {_classes(classes[::-1][:shown])}"
        if "likelihood" in each:
            likelihood = each["likelihood"]
            scales = ", ".join(f"{value:.3f}" for value in likelihood["nats_per_scale"])
            yield (
                f"{name}: {likelihood['nats_per_code']:.4f} nats, {likelihood['bits_per_code']:.3f} bits per "
                f"code of {likelihood['count']:,} held-out images; nats per scale {scales}"
            )


def _classes(figures: Sequence[dict[str, Any]]) -> str:
    return ", ".join(f"{each.get('name') or each['label']} ({each['fd']:.1f})" for each in figures)


def _reasons(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield why figures are missing, once for those that no set has."""
    missing = [set(each["left_out"]) for each in results]
    nowhere = set.intersection(*missing)
    for name, reason in results[0]["left_out"].items():
        if name in nowhere:
            yield f"no {name}: {reason}"
    for each in results:
        for name, reason in each["left_out"].items():
            if name not in nowhere:
                yield f"{each['sets']['drawn']['name']}: no {name}: {reason}"


def write_images(
    comparison: Comparison, results: dict[str, Any], training: ImageSet | None, folder: Path
) -> None:
    """Write neighbours.png and classes.png, each where the images for it are at hand.

    Args:
        comparison: The two sets.
        results: Of `evaluate`, with `per_class`.
        training: The training set; None is the reference.
        folder: Where to write.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn, others = comparison.drawn.images, training or comparison.reference.images
    if comparison.training is not None and drawn is not None and others is not None:
        images = _neighbours(comparison, drawn, others)
        _save(grid(images, columns=min(_COLUMNS, len(images))), folder / "neighbours.png")
    if drawn is not None and len(results.get("per_class", [])) > 1:
        _save(sheet(_class_rows(comparison, results["per_class"], drawn)), folder / "classes.png")


def _neighbours(comparison: Comparison, drawn: ImageSet, training: ImageSet) -> list[Image.Image]:
    """Return four rows: the drawn images closest to training above those, some of all above theirs."""
    nearest = comparison.training
    assert nearest is not None
    order = np.argsort(nearest.distances, kind="stable")
    rows = []
    for chosen in (order[:_COLUMNS], order[evenly_spaced(len(order), _COLUMNS)]):
        rows += _read(drawn, comparison.drawn.indices[chosen]) + _read(training, nearest.indices[chosen])
    return rows


def _class_rows(
    comparison: Comparison, figures: list[dict[str, Any]], drawn: ImageSet
) -> dict[str, list[Image.Image]]:
    """Return a row of drawn images, by name, for each of the worst classes, then for each of the best."""
    count = min(_IMAGE_CLASSES, len(figures) // 2)
    labels = comparison.drawn.labels
    assert labels is not None
    shown = figures[:count] + figures[-count:]
    members = [comparison.drawn.indices[np.flatnonzero(labels == each["label"])] for each in shown]
    names = numbered([str(each.get("name") or each["label"]) for each in shown])
    return {name: _read(drawn, rows[:_COLUMNS]) for name, rows in zip(names, members)}


def _read(images: ImageSet, indices: np.ndarray) -> list[Image.Image]:
    arrays, _ = images.read(indices)
    factor = max(1, _LEAST_SIDE // max(arrays.shape[1:3]))
    size = arrays.shape[2] * factor, arrays.shape[1] * factor
    return [Image.fromarray(array).resize(size, Image.Resampling.NEAREST) for array in arrays]


def _save(image: Image.Image, file: Path) -> None:
    with replacing(file) as temporary:
        image.save(temporary, format="png")
