"""Sampling presets on a grid, each judged by one metric, and their heat map.

Image i has the same seed under every preset, so figures differ by less noise than each of them carries.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mvar_models.distributed import Processes
from mvar_models.environment import environment
from mvar_models.evaluation.npz import write_npz
from mvar_models.files import claim, replacing, write_text
from mvar_models.optional import require
from mvar_models.pipeline import Pipeline
from mvar_models.pipeline.identity import drawing_weights, scorer_identity
from mvar_models.records import Figure, read_record
from mvar_models.sampling.progress import counting
from mvar_models.sampling.settings import SamplingSettings

LOWER_IS_BETTER = frozenset({"fd", "sfd", "kid", "near_copies"})
_SETTINGS = "settings.json"
_PLAIN = SamplingSettings(guidance_scale=0.0, top_k=0, top_p=0.0)
_EXTRA = "demo"


@dataclass(frozen=True)
class Cell:
    """A preset and its figures.

    Attributes:
        preset: The preset.
        figures: Figures by name; the metric's own has its name.
    """

    preset: SamplingSettings
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
    others: SamplingSettings = _PLAIN,
) -> list[SamplingSettings]:
    """Return every combination, in order and without repetitions; all else is as in `others`.

    Raises:
        ValueError: a value is out of range, or an axis is empty.
    """
    axes = {"guidance_scale": guidance_scales, "top_k": top_ks, "top_p": top_ps}
    for name, values in axes.items():
        if not values:
            raise ValueError(f"{name} needs at least one value")
    every = product(guidance_scales, top_ks, top_ps)
    return list(dict.fromkeys(replace(others, guidance_scale=g, top_k=k, top_p=p) for g, k, p in every))


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
    presets: Sequence[SamplingSettings],
    folder: Path,
    *,
    settings: Mapping[str, Any],
    per_class: int = 10,
    seed: int = 0,
    batch_size: int = 32,
    processes: Processes | None = None,
    on_cell: Callable[[Cell], None] | None = None,
) -> list[Cell]:
    """Sample images with each preset and judge them.

    A stopped sweep continues, and a larger grid in the same folder samples only the presets that are new.

    Args:
        pipeline: Samples the images.
        judge: Takes the .npz of a preset's images, which is removed afterwards; returns figures by name.
        presets: The presets.
        folder: Where a file per finished preset is kept, and the images of those in work.
        settings: Determine the figures besides these arguments, such as the reference; a folder made with
            others, or with other weights or by another version, is refused.
        per_class: Images of each class.
        seed: Seed of the first image under every preset.
        batch_size: Images sampled at a time.
        processes: Those that share the presets; nothing is communicated.
        on_cell: Called after each preset of this process, finished before or now.

    Returns:
        A cell for each preset that is finished, by whichever process, in order.

    Raises:
        ValueError: the folder belongs to a sweep with other settings.
    """
    if not presets:
        raise ValueError("presets must be at least one, got none")
    processes = processes or Processes()
    sampling: dict[str, Any] = {"per_class": per_class, "seed": seed, "batch_size": batch_size}
    claim(folder / _SETTINGS, {**settings, **sampling, **drawing_weights(pipeline)}, "a sweep")
    mine = presets[processes.rank :: processes.world_size]
    with counting("sweep", len(mine), "preset") as meter:
        for preset in mine:
            record = _record(folder, preset)
            if not record.exists():
                images = record.with_suffix(".npz")
                write_npz(pipeline, images, settings=preset, **sampling)
                cell = Cell(preset, dict(judge(images)))
                write_text(record, json.dumps(cell.to_dict(), indent=2) + "\n")
                images.unlink()
            meter.advance()
            if on_cell is not None:
                on_cell(_read(record, preset))
    return read_cells(folder, presets)


def read_cells(folder: Path, presets: Sequence[SamplingSettings]) -> list[Cell]:
    """Read the cell of each preset that is finished, in order."""
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


def pyplot() -> Any:
    """Return matplotlib's pyplot, drawing without a screen.

    Raises:
        ImportError: matplotlib is not installed.
    """
    require("matplotlib", _EXTRA).use("Agg")
    return require("matplotlib.pyplot", _EXTRA)


def draw_heat_map(file: Path, cells: Sequence[Cell], metric: str, title: str) -> None:
    """Draw the metric of every cell: guidance across, top-p down, a panel per top-k, the best in a frame.

    Args:
        file: The PNG to write.
        cells: A full grid or part of one; presets without a cell stay white.
        metric: Name of the figure.
        title: Stands above it.
    """
    plt = pyplot()
    presets = [cell.preset for cell in cells]
    guidance = sorted({preset.guidance_scale for preset in presets})
    # A filter that is off lets through more than any other.
    tops, shares = (
        sorted({getattr(preset, name) for preset in presets}, key=lambda value: value or np.inf)
        for name in ("top_k", "top_p")
    )
    # [top_k, top_p, guidance_scale]
    table = np.full((len(tops), len(shares), len(guidance)), np.nan)
    for cell, preset in zip(cells, presets):
        place = tops.index(preset.top_k), shares.index(preset.top_p), guidance.index(preset.guidance_scale)
        table[place] = cell.figure(metric)
    best = best_cell(cells, metric).preset
    width, height = 1.6 + len(tops) * (1 + 0.8 * len(guidance)), 1.8 + 0.6 * len(shares)
    figure, axes = plt.subplots(1, len(tops), figsize=(width, height), squeeze=False, layout="constrained")
    lower = metric in LOWER_IS_BETTER
    for axis, top_k, values in zip(axes[0], tops, table):
        image = axis.imshow(
            values, cmap="viridis_r" if lower else "viridis", vmin=np.nanmin(table), vmax=np.nanmax(table),
            aspect="auto",
        )  # fmt: skip
        axis.set_title(f"top_k {_or_off(top_k)}")
        axis.set_xticks(range(len(guidance)), [f"{value:g}" for value in guidance])
        axis.set_yticks(range(len(shares)), [_or_off(value) for value in shares])
        axis.set_xlabel("guidance_scale")
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                dark = image.norm(value) > 0.5 if lower else image.norm(value) < 0.5
                color = "white" if dark else "black"
                axis.text(column, row, _three_digits(value), ha="center", va="center", color=color)
        if top_k == best.top_k:
            corner = guidance.index(best.guidance_scale) - 0.5, shares.index(best.top_p) - 0.5
            axis.add_patch(
                plt.Rectangle(corner, 1, 1, fill=False, edgecolor="red", linewidth=3, clip_on=False)
            )
    axes[0][0].set_ylabel("top_p")
    figure.colorbar(image, ax=axes, label=metric)
    figure.suptitle(title)
    with replacing(file) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    plt.close(figure)


def _three_digits(value: float) -> str:
    return f"{value:#.3g}".rstrip(".")


def _or_off(value: float) -> str:
    return f"{value:g}" if value else "off"


def others_in_words(preset: SamplingSettings) -> list[str]:
    """Return what a preset has besides guidance scale, top_k and top_p, where that is not the default."""
    others = [(field.name, getattr(preset, field.name), field.default) for field in fields(preset)[3:]]
    return [f"{name} {value}" for name, value, default in others if value != default]


def _record(folder: Path, preset: SamplingSettings) -> Path:
    name = f"guidance{preset.guidance_scale}-k{preset.top_k}-p{preset.top_p}"
    # By its content, since it may change at its place.
    others = others_in_words(replace(preset, scorer=scorer_identity(preset)))
    return folder / ("-".join([name, *others]).replace(" ", "-").replace(":", "_") + ".json")


def _read(record: Path, preset: SamplingSettings) -> Cell:
    return Cell(preset, read_record(record, _CellFile).figures)
