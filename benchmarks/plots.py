"""Pictures of the attention suite: time over tokens, and speed-up over dense attention. Needs matplotlib (the `bench` extra)."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from mvar_models.extras import require


def draw(out: Path, records: list[dict[str, Any]], title: str) -> list[Path]:
    """growth.png and speedup.png in `out`, as far as the records have what they show."""
    timed = [r for r in records if not r["reason"]]
    return [path for path in (_growth(out / "growth.png", timed, title), _speedup(out / "speedup.png", timed, title)) if path]


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
            axis.plot(*zip(*sorted(points)), marker="o", markersize=3, label=name, color=colours[name])
        axis.set(xscale="log", yscale="log", xlabel="tokens", ylabel="ms a batch element", title=f"{direction}, windows of 7")
        axis.grid(which="both", alpha=0.2)
    axes[0].legend(fontsize=7)
    return _save(plt, figure, path, title)


def _speedup(path: Path, timed: list[dict[str, Any]], title: str) -> Path | None:
    rows = [r for r in timed if r.get("speedup") and r["competitor"].startswith("mvar auto") and r["tokens"] >= 256]
    if not rows:
        return None
    plt, figure, (axis,) = _figure(1, 9, 0.35 * len(rows) + 1.5)
    labels = [f"{r['case']} k{r['kernel_size']}{' cosine' if r['cosine'] else ''}, {r['direction']}" for r in rows]
    places = range(len(rows))
    axis.barh(places, [r["flop_bound_speedup"] for r in rows], color="0.85", label="bound by attended pairs")
    axis.barh(places, [r["speedup"] for r in rows], height=0.5, label="measured")
    axis.axvline(1, color="0.3", linewidth=1)
    axis.set(yticks=list(places), yticklabels=labels, xscale="log", xlabel="x over SDPA with the dense mask")
    axis.invert_yaxis()
    axis.legend(fontsize=8)
    return _save(plt, figure, path, title)


def _save(plt: Any, figure: Any, path: Path, title: str) -> Path:
    figure.suptitle(title, fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path
