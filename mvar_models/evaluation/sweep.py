"""Sampling presets on a grid, each judged by one metric.

Image i has the same seed under every preset, so figures differ by less noise than each of them carries. What
is finished is kept: a stopped sweep continues, and a larger grid in the same folder draws only what is new.
Process r of n takes every n-th preset, and the one that finds all of them finished has them all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

from mvar_models.environment import environment
from mvar_models.evaluation.npz import write_npz
from mvar_models.files import claim, write_text
from mvar_models.pipeline import Pipeline
from mvar_models.pipeline.identity import drawing_weights
from mvar_models.records import Figure, read_record
from mvar_models.sampling.guidance import RELEASED_SCHEDULE
from mvar_models.sampling.preset import Preset, recorded

LOWER_IS_BETTER = frozenset({"fd", "sfd", "kid", "near_copies"})
_SETTINGS = "settings.json"


@dataclass(frozen=True)
class Cell:
    """A preset and what was found with it.

    Attributes:
        preset: The preset.
        figures: Figures by name; the metric's own has its name.
    """

    preset: Preset
    figures: dict[str, float]

    def figure(self, metric: str) -> float:
        """Return a figure, or raise ValueError if a file without it was read."""
        if metric not in self.figures:
            file = _record(Path(), self.preset)
            raise ValueError(f"{file} has no {metric} among its figures; remove it to compute it again")
        return self.figures[metric]

    def to_dict(self) -> dict[str, Any]:
        """Return the preset's values and the figures, as files hold them."""
        return {**self.preset.to_dict(), "figures": self.figures}


@dataclass(frozen=True)
class _CellFile:
    ignores_unknown: ClassVar[bool] = True  # the preset, which the file's name says as well

    figures: dict[str, Figure]


def preset_grid(
    guidance_scales: Sequence[float],
    top_ks: Sequence[int],
    top_ps: Sequence[float],
    guidance_schedule: str = RELEASED_SCHEDULE,
) -> list[Preset]:
    """Return every combination, in order and without repetitions; all have the same schedule.

    Raises:
        ValueError: a value is out of range, or an axis is empty.
    """
    axes = {"guidance_scale": guidance_scales, "top_k": top_ks, "top_p": top_ps}
    for name, values in axes.items():
        if not values:
            raise ValueError(f"{name} needs at least one value")
    every = product(guidance_scales, top_ks, top_ps)
    return list(dict.fromkeys(Preset(*values, guidance_schedule) for values in every))


def best_cell(cells: Sequence[Cell], metric: str) -> Cell:
    """Return the cell with the best figure; the first of equals.

    Raises:
        ValueError: no cell has a finite figure.
    """
    known = [cell for cell in cells if math.isfinite(cell.figure(metric))]
    if not known:
        raise ValueError(f"{metric} is not finite for any of the {len(cells)} presets")
    sign = 1 if metric in LOWER_IS_BETTER else -1
    return min(known, key=lambda cell: sign * cell.figure(metric))


def sweep(
    pipeline: Pipeline,
    judge: Callable[[Path], Mapping[str, float]],
    presets: Sequence[Preset],
    folder: Path,
    *,
    settings: Mapping[str, Any],
    per_class: int = 10,
    seed: int = 0,
    batch_size: int = 32,
    rank: int = 0,
    world_size: int = 1,
    report: Callable[[int, int], None] | None = None,
    on_cell: Callable[[Cell], None] | None = None,
) -> list[Cell]:
    """Draw images with each preset and judge them.

    Args:
        pipeline: Draws the images.
        judge: Takes the .npz of a preset's images, which is removed afterwards; returns figures by name.
        presets: The presets.
        folder: Where a file per finished preset is kept, and the images of those in work.
        settings: What decides the figures besides these arguments, such as the reference; a folder made with
            others, or with other weights or by another version, is refused.
        per_class: Images of each class.
        seed: Seed of the first image under every preset.
        batch_size: Images drawn at a time.
        rank, world_size: Which process of how many this is.
        report: Called with the number of batches that this process has drawn, and of those it has to draw.
        on_cell: Called after each preset of this process, finished before or now.

    Returns:
        A cell for each preset that is finished, by whichever process, in order.

    Raises:
        ValueError: the folder belongs to a sweep with other settings.
    """
    if not presets:
        raise ValueError("presets must be at least one, got none")
    drawing = {"per_class": per_class, "seed": seed, "batch_size": batch_size}
    claim(folder / _SETTINGS, {**settings, **drawing, **drawing_weights(pipeline)}, "a sweep")
    mine = presets[rank::world_size]
    parts = -(-pipeline.model.config.num_classes * per_class // batch_size)
    for index, preset in enumerate(mine):
        record = _record(folder, preset)
        if not record.exists():
            images = record.with_suffix(".npz")

            def drawn(done: int, _: int, before: int = index * parts) -> None:
                if report is not None:
                    report(before + done, len(mine) * parts)

            options = recorded(preset.to_dict(), pipeline.model.config)
            write_npz(pipeline, images, report=drawn, **drawing, **options)  # type: ignore[arg-type]
            cell = Cell(preset, dict(judge(images)))
            write_text(record, json.dumps(cell.to_dict(), indent=2) + "\n")
            images.unlink()
        if report is not None:
            report((index + 1) * parts, len(mine) * parts)
        if on_cell is not None:
            on_cell(_read(record, preset))
    finished = ((_record(folder, preset), preset) for preset in presets)
    return [_read(record, preset) for record, preset in finished if record.exists()]


def write_summary(folder: Path, cells: Sequence[Cell], metric: str) -> Cell:
    """Write preset.json, the best preset, and sweep.json, all figures; return the best cell."""
    best = best_cell(cells, metric)
    summary = {
        "metric": metric,
        "better": "lower" if metric in LOWER_IS_BETTER else "higher",
        "best": best.to_dict(),
        "cells": [cell.to_dict() for cell in cells],
        "settings": read_record(folder / _SETTINGS, dict[str, Any]),
        "versions": environment(),
    }
    write_text(folder / "sweep.json", json.dumps(summary, indent=2) + "\n")
    best.preset.write(folder / "preset.json")
    return best


def _record(folder: Path, preset: Preset) -> Path:
    # The released schedule is left out, so that names match those of sweeps that knew no other.
    schedule = "" if preset.guidance_schedule == RELEASED_SCHEDULE else f"-{preset.guidance_schedule}"
    return folder / f"guidance{preset.guidance_scale}{schedule}-k{preset.top_k}-p{preset.top_p}.json"


def _read(record: Path, preset: Preset) -> Cell:
    return Cell(preset, read_record(record, _CellFile).figures)
