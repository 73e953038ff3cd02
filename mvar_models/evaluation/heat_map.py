"""A sweep's figures as a heat map: guidance across, top-p down, a panel for each top-k."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mvar_models.evaluation.sweep import LOWER_IS_BETTER, Cell, best_cell
from mvar_models.files import replacing
from mvar_models.optional import require

_EXTRA = "demo"


def pyplot() -> Any:
    """Return matplotlib's pyplot, drawing without a screen.

    Raises:
        ImportError: matplotlib is not installed.
    """
    require("matplotlib", _EXTRA).use("Agg")
    return require("matplotlib.pyplot", _EXTRA)


def draw_heat_map(file: Path, cells: Sequence[Cell], metric: str, title: str) -> None:
    """Draw the metric of every cell and frame the best.

    Args:
        file: The PNG to write.
        cells: A full grid or part of one; presets without a cell stay white.
        metric: Name of the figure.
        title: What stands above it.
    """
    plt = pyplot()
    guidance = sorted({cell.preset.guidance_scale for cell in cells})
    # A filter that is off lets through more than any other.
    tops, shares = (
        sorted({getattr(cell.preset, name) for cell in cells}, key=lambda value: value or np.inf)
        for name in ("top_k", "top_p")
    )
    # [top_k, top_p, guidance_scale]
    table = np.full((len(tops), len(shares), len(guidance)), np.nan)
    for cell in cells:
        preset = cell.preset
        place = tops.index(preset.top_k), shares.index(preset.top_p), guidance.index(preset.guidance_scale)
        table[place] = cell.figure(metric)
    best = best_cell(cells, metric).preset
    figure, axes = plt.subplots(
        1,
        len(tops),
        figsize=(1.6 + len(tops) * (1 + 0.8 * len(guidance)), 1.8 + 0.6 * len(shares)),
        squeeze=False,
        layout="constrained",
    )
    colors = "viridis_r" if metric in LOWER_IS_BETTER else "viridis"
    low, high = np.nanmin(table), np.nanmax(table)
    for axis, top_k, values in zip(axes[0], tops, table):
        image = axis.imshow(values, cmap=colors, vmin=low, vmax=high, aspect="auto")
        axis.set_title(f"top_k {_or_off(top_k)}")
        axis.set_xticks(range(len(guidance)), [f"{value:g}" for value in guidance])
        axis.set_yticks(range(len(shares)), [_or_off(value) for value in shares])
        axis.set_xlabel("guidance_scale")
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                dark = image.norm(value) < 0.5 if colors == "viridis" else image.norm(value) > 0.5
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
