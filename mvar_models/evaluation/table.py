"""The table that `mvar evaluate` prints: one row per drawn set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

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
_SHOWN_CLASSES = 3


def table(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a table of what `evaluate` returned for several sets.

    A figure that no set has gets no column.

    Args:
        results: One dict per drawn set, all with the same features and reference.
    """
    distance = results[0]["distance"]
    columns = [("fd", distance, "{:.2f}"), *_FIGURES]
    columns = [column for column in columns if any(each.get(column[0]) is not None for each in results)]
    rows = [["drawn", "images", *(title for _, title, _ in columns)]]
    for each in results:
        cells = [each["sets"]["drawn"]["name"], f"{each['counts']['drawn']:,}"]
        rows.append(cells + [_cell(each, name, pattern) for name, _, pattern in columns])
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        yield "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
    yield from _notes(results)


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
            shown = min(_SHOWN_CLASSES, len(classes) // 2)
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
