"""Plots of the results. Needs matplotlib (the `bench` extra).

Every `*_figure` function builds a figure from records and returns None where there is nothing to show;
`save` writes it.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.core.attention_report import SLOPE_TOKENS, case_title, grid_series, slope
from benchmarks.core.report import Record
from mvar_models.optional import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save(figure: Figure | None, path: Path, title: str) -> list[Path]:
    """Write a figure under `title`; return the paths written, none for None."""
    if figure is None:
        return []
    figure.suptitle(textwrap.fill(title, 150), fontsize=8)
    figure.savefig(path, dpi=130)
    return [path]


def growth_figure(records: list[Record]) -> Figure | None:
    """Plot time over tokens on single grids, one panel per direction, with the slopes in the legend."""
    series = grid_series(records)
    if len({tokens for points in series.values() for tokens, _ in points}) < 2:
        return None
    figure, axes = _figure(2, 11, 4.5)
    # One colour per competitor in both panels.
    colours = {name: f"C{index}" for index, name in enumerate(sorted({name for _, name in series}))}
    for axis, panel in zip(axes, ("forward", "both")):
        for (direction, name), points in series.items():
            if direction != panel:
                continue
            large = [point for point in points if point[0] >= SLOPE_TOKENS]
            label = f"{name}: N^{slope(large):.2f}" if len(large) > 1 else name
            axis.plot(*zip(*points), marker="o", markersize=3, label=label, color=colours[name])
        axis.set(
            xscale="log",
            yscale="log",
            xlabel="tokens",
            ylabel="ms per batch element",
            title=f"{panel}, windows of 7",
        )
        axis.grid(which="both", alpha=0.2)
        if axis.lines:
            axis.legend(fontsize=6, title=f"slope from {SLOPE_TOKENS} tokens on", title_fontsize=6)
    return figure


def speedup_figure(records: list[Record]) -> Figure | None:
    """Plot the measured speed-up of `auto` over dense attention in front of the bound by attended pairs."""
    rows = [
        r
        for r in records
        if r.get("speedup") and r["competitor"].startswith("mvar auto") and r["tokens"] >= 256
    ]
    if not rows:
        return None
    figure, (axis,) = _figure(1, 9, 0.35 * len(rows) + 1.5)
    heights = range(len(rows))
    axis.barh(heights, [r["flop_bound_speedup"] for r in rows], color="0.85", label="bound by attended pairs")
    axis.barh(heights, [r["speedup"] for r in rows], height=0.5, label="measured")
    axis.axvline(1, color="0.3", linewidth=1)
    labels = [f"{case_title(r)}, {r['direction']}" for r in rows]
    axis.set(yticks=list(heights), yticklabels=labels, xscale="log", xlabel="x over SDPA with the dense mask")
    axis.invert_yaxis()
    axis.legend(fontsize=8)
    return figure


def bars_figure(records: list[Record], base: str) -> Figure | None:
    """Plot every competitor's speed-up as a bar; `base` says what 1 is."""
    rows = [r for r in records if not r["reason"] and r.get("speedup")]
    if not rows:
        return None
    figure, (axis,) = _figure(1, 10, 0.3 * len(rows) + 1.5)
    names = list(dict.fromkeys(r["competitor"] for r in rows))
    colours = [f"C{names.index(r['competitor'])}" for r in rows]
    axis.barh(range(len(rows)), [r["speedup"] for r in rows], color=colours)
    for height, r in enumerate(rows):
        axis.text(r["speedup"], height, f" {r['median_ms']:,.0f} ms", va="center", fontsize=7)
    axis.set(yticks=range(len(rows)), xlabel=f"speed, {base}; the number is the median")
    axis.set_yticklabels([f"{r['case']}, {r['direction']}: {r['competitor']}" for r in rows], fontsize=7)
    axis.axvline(1, color="0.3", linewidth=1)
    axis.invert_yaxis()
    return figure


def memory_figure(records: list[Record]) -> Figure | None:
    """Plot the bytes held for backward by what saved them, and the peaks of sampling by phase."""
    held = [r for r in records if r["kind"] == "activations" and r["case"] == records[0]["case"]]
    if not held:
        return None
    figure, (left_axis, right_axis) = _figure(2, 14, 5.5)
    _stack_parts(left_axis, held)
    _draw_peaks(right_axis, [r for r in records if r["kind"] == "drawing"])
    return figure


def _stack_parts(axis: Any, held: list[Record]) -> None:
    names = sorted({name for r in held for name, size in r["parts"].items() if size > 0.02 * r["bytes"]})
    labels = [f"{r['arch'].upper()}, {r['way']}" for r in held]
    colours = require("matplotlib", "bench").colormaps["tab20"]
    left = [0.0] * len(held)
    for index, name in enumerate(names):
        sizes = [r["parts"].get(name, 0) / 1e6 for r in held]
        axis.barh(labels, sizes, left=left, label=name, color=colours(index % 20))
        left = [start + size for start, size in zip(left, sizes)]
    rest = [r["bytes"] / 1e6 - start for r, start in zip(held, left)]
    axis.barh(labels, rest, left=left, label="the rest", color="0.7")
    axis.set(xlabel="MB per image held for backward", title=held[0]["case"])
    axis.invert_yaxis()
    axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3)


def _draw_peaks(axis: Any, draws: list[Record]) -> None:
    for index, r in enumerate(draws):
        # Random weights are drawn in float32 first; that peak is not sampling's.
        phases = {name: size / 1e6 for name, size in r["peaks"].items() if name != "weights"}
        labels = [f"{r['arch'].upper()}, {name}" for name in phases]
        weights = (r["weights"] + r["vqvae"]) / 1e6
        axis.barh(labels, list(phases.values()), color=f"C{index}")
        axis.barh(labels, [weights] * len(phases), color="0.8", height=0.4)
    axis.set(xlabel="peak MB while sampling; grey: weights", title=draws[0]["case"] if draws else "")
    axis.invert_yaxis()


def _figure(columns: int, width: float, height: float) -> tuple[Figure, Any]:
    # Figure without pyplot: no backend to choose, and nothing to close.
    figure: Figure = require("matplotlib.figure", "bench").Figure(
        figsize=(width, height), layout="constrained"
    )
    return figure, figure.subplots(1, columns, squeeze=False)[0]
