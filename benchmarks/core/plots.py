"""Pictures: time over tokens with slopes, speed-up over dense attention, models and sampling as bars, memory by parts. Needs matplotlib (`bench`)."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.core.report import SLOPE_TOKENS, case_title, slope
from mvar_models.optional import require


def draw(out: Path, records: list[dict[str, Any]], title: str) -> list[Path]:
    """growth.png and speedup.png in `out`, as far as the records have what they show."""
    timed = [r for r in records if not r["reason"]]
    return [
        path
        for path in (_growth(out / "growth.png", timed, title), _speedup(out / "speedup.png", timed, title))
        if path
    ]


def _figure(columns: int, width: float, height: float) -> tuple[Any, Any, Any]:
    require("matplotlib", "bench").use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, columns, figsize=(width, height), squeeze=False, layout="constrained")
    return plt, figure, axes[0]


def _growth(path: Path, timed: list[dict[str, Any]], title: str) -> Path | None:
    grids = [r for r in timed if r["case"].startswith("grid") and r["kernel_size"] == 7]
    if len({r["tokens"] for r in grids}) < 2:
        return None
    plt, figure, axes = _figure(2, 11, 4.5)
    colours = {name: f"C{index}" for index, name in enumerate(sorted({r["competitor"] for r in grids}))}
    for axis, direction in zip(axes, ("forward", "both")):
        series: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for r in grids:
            if r["direction"] == direction:
                series[r["competitor"]].append((r["tokens"], r["median_ms"] / r["batch"]))
        for name, points in sorted(series.items()):
            large = [point for point in sorted(points) if point[0] >= SLOPE_TOKENS]
            label = f"{name}: N^{slope(large):.2f}" if len(large) > 1 else name
            axis.plot(*zip(*sorted(points)), marker="o", markersize=3, label=label, color=colours[name])
        axis.set(
            xscale="log",
            yscale="log",
            xlabel="tokens",
            ylabel="ms a batch element",
            title=f"{direction}, windows of 7",
        )
        axis.grid(which="both", alpha=0.2)
        if series:
            axis.legend(fontsize=6, title=f"slope from {SLOPE_TOKENS} tokens on", title_fontsize=6)
    return _save(plt, figure, path, title)


def _speedup(path: Path, timed: list[dict[str, Any]], title: str) -> Path | None:
    rows = [
        r
        for r in timed
        if r.get("speedup") and r["competitor"].startswith("mvar auto") and r["tokens"] >= 256
    ]
    if not rows:
        return None
    plt, figure, (axis,) = _figure(1, 9, 0.35 * len(rows) + 1.5)
    labels = [f"{case_title(r)}, {r['direction']}" for r in rows]
    places = range(len(rows))
    axis.barh(places, [r["flop_bound_speedup"] for r in rows], color="0.85", label="bound by attended pairs")
    axis.barh(places, [r["speedup"] for r in rows], height=0.5, label="measured")
    axis.axvline(1, color="0.3", linewidth=1)
    axis.set(yticks=list(places), yticklabels=labels, xscale="log", xlabel="x over SDPA with the dense mask")
    axis.invert_yaxis()
    axis.legend(fontsize=8)
    return _save(plt, figure, path, title)


def bars(path: Path, records: list[dict[str, Any]], base: str, title: str) -> list[Path]:
    """Speed-up of every competitor over `base`, a group a case and kind of work."""
    rows = [r for r in records if not r["reason"] and r.get("speedup")]
    if not rows:
        return []
    plt, figure, (axis,) = _figure(1, 10, 0.3 * len(rows) + 1.5)
    names = list(dict.fromkeys(r["competitor"] for r in rows))
    axis.barh(
        range(len(rows)),
        [r["speedup"] for r in rows],
        color=[f"C{names.index(r['competitor'])}" for r in rows],
    )
    for place, r in enumerate(rows):
        axis.text(r["speedup"], place, f" {r['median_ms']:,.0f} ms", va="center", fontsize=7)
    labels = [f"{r['case']}, {r['direction']}: {r['competitor']}" for r in rows]
    axis.set(yticks=range(len(rows)), xlabel=f"speed, {base}; the number is the median")
    axis.set_yticklabels(labels, fontsize=7)
    axis.axvline(1, color="0.3", linewidth=1)
    axis.invert_yaxis()
    return [_save(plt, figure, path, title)]


def memory(path: Path, records: list[dict[str, Any]], title: str) -> list[Path]:
    """What autograd holds by parts, and the peaks of drawing by phase."""
    held = [r for r in records if r["kind"] == "activations" and r["case"] == records[0]["case"]]
    draws = [r for r in records if r["kind"] == "drawing"]
    if not held:
        return []
    plt, figure, axes = _figure(2, 14, 5.5)
    names = sorted({name for r in held for name, size in r["parts"].items() if size > 0.02 * r["bytes"]})
    labels = [f"{r['arch'].upper()}, {r['way']}" for r in held]
    left = [0.0] * len(held)
    colours = plt.get_cmap("tab20")
    for index, name in enumerate([*names, "the rest"]):
        sizes = [
            r["parts"].get(name, 0) / 1e6 if name != "the rest" else r["bytes"] / 1e6 - done
            for r, done in zip(held, left)
        ]
        axes[0].barh(
            labels, sizes, left=left, label=name, color=colours(index % 20) if name != "the rest" else "0.7"
        )
        left = [done + size for done, size in zip(left, sizes)]
    axes[0].set(xlabel="MB a picture held for backward", title=held[0]["case"])
    axes[0].invert_yaxis()
    axes[0].legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3)
    for index, r in enumerate(draws):
        phases = {name: size / 1e6 for name, size in r["peaks"].items() if name != "weights"}
        axes[1].barh(
            [f"{r['arch'].upper()}, {name}" for name in phases], list(phases.values()), color=f"C{index}"
        )
        axes[1].barh(
            [f"{r['arch'].upper()}, {name}" for name in phases],
            [(r["weights"] + r["vqvae"]) / 1e6] * len(phases),
            color="0.8",
            height=0.4,
        )
    axes[1].set(xlabel="peak MB while drawing; grey: weights", title=draws[0]["case"] if draws else "")
    axes[1].invert_yaxis()
    return [_save(plt, figure, path, title)]


def _save(plt: Any, figure: Any, path: Path, title: str) -> Path:
    figure.suptitle(textwrap.fill(title, 150), fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path
