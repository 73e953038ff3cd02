"""Draw the five pictures of docs/how.md into docs/images: `python scripts/how_images.py`.

Everything is computed by the library: images by the embedded mvar-emoji, masks and counts by `Pyramid`, bytes
from the released configuration of depth 16. Needs the `demo` extra and the package installed.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mvar_kernels import Pyramid
from mvar_models import MVARConfig, MVARPipeline

OUT = Path(__file__).resolve().parent.parent / "docs" / "images"
BLUE, ORANGE, GREY = "#4c72b0", "#dd8452", "0.55"
SMALL = (1, 2, 3, 4, 6, 8)
# The cell of the 8 x 8 scale, row and column, whose keys the pictures show.
QUERIES = ((3, 3), (0, 7), (6, 1))


def save(figure: Figure, name: str) -> None:
    """Write one picture and close it."""
    figure.savefig(OUT / name, dpi=120, facecolor="white", bbox_inches="tight")
    plt.close(figure)
    print(f"docs/images/{name}: {(OUT / name).stat().st_size / 1024:.0f} KB")


def bare(axes: Axes, title: str) -> None:
    """Leave nothing of the axes but a title."""
    axes.set_title(title, fontsize=8)
    axes.set_xticks([])
    axes.set_yticks([])


def draw_scales() -> None:
    """how_scales.png: an image after each scale, above the grid of tokens that the scale adds."""
    pipeline = MVARPipeline.from_pretrained("mvar-emoji")
    scales = pipeline(["fluent-smileys-emotion"], seed=0).scales
    sides = pipeline.model.config.sides
    figure, rows = plt.subplots(2, len(sides), figsize=(9, 2.1), layout="constrained")
    for axes, grid, scale, side in zip(rows[0], rows[1], scales, sides):
        axes.imshow(scale[0])
        bare(axes, f"after scale {list(sides).index(side) + 1}")
        grid.imshow(np.full((side, side), 0.15), cmap="Blues", vmin=0, vmax=1)
        grid.set_xticks(np.arange(-0.5, side), minor=True)
        grid.set_yticks(np.arange(-0.5, side), minor=True)
        grid.grid(which="minor", color="white", linewidth=1.5 if side < 8 else 0.7)
        grid.tick_params(which="minor", length=0)
        bare(grid, f"{side} x {side}")
    save(figure, "how_scales.png")


def draw_mask(name: str, title: str, mask: np.ndarray, sides: tuple[int, ...]) -> None:
    """Draw who attends to whom, with the scales marked on both axes."""
    figure, axes = plt.subplots(figsize=(4.2, 4.2), layout="constrained")
    axes.imshow(mask, cmap="Blues", interpolation="nearest")
    ends = np.cumsum([side * side for side in sides])
    for end in ends[:-1]:
        axes.axhline(end - 0.5, color=GREY, linewidth=0.4)
        axes.axvline(end - 0.5, color=GREY, linewidth=0.4)
    centres = ends - np.array([side * side for side in sides]) / 2 - 0.5
    names = [f"{side} x {side}" if side > 2 else "" for side in sides]
    axes.set_xticks(centres, names, fontsize=7)
    axes.set_yticks(centres, names, fontsize=7)
    axes.set_xlabel("keys, scale by scale", fontsize=8)
    axes.set_ylabel("queries, scale by scale", fontsize=8)
    axes.set_title(f"{title}\n{int(mask.sum()):,} of {mask.size:,} pairs", fontsize=9)
    save(figure, name)


def draw_windows() -> None:
    """how_windows.png: the windows of three tokens of a scale, and the same rule across two scales."""
    side, kernel_size = SMALL[-1], 3
    pyramid = Pyramid(SMALL, kernel_size=kernel_size, dense_scales=3, previous_scales=1)
    offset, before = pyramid.offsets[-1], pyramid.offsets[-2]
    mask = pyramid.mask().numpy()
    figure, rows = plt.subplots(2, len(QUERIES), figsize=(6.6, 4.6), layout="constrained")
    for column, (row, col) in enumerate(QUERIES):
        keys = mask[offset + row * side + col]
        own = keys[offset:].reshape(side, side).astype(float)
        own[row, col] = 2
        coarse = SMALL[-2]
        for axes, picture, title in (
            (rows[0, column], own, f"token ({row}, {col}): keys of its scale"),
            (
                rows[1, column],
                keys[before:offset].reshape(coarse, coarse),
                "with previous_scales=1, also these",
            ),
        ):
            axes.imshow(picture, cmap="Blues", vmin=0, vmax=2.2)
            cells = picture.shape[0]
            axes.set_xticks(np.arange(-0.5, cells), minor=True)
            axes.set_yticks(np.arange(-0.5, cells), minor=True)
            axes.grid(which="minor", color=GREY, linewidth=0.4)
            axes.tick_params(which="minor", length=0)
            bare(axes, title)
    save(figure, "how_windows.png")


def draw_cache() -> None:
    """how_cache.png: bytes kept from scale to scale by VAR and by MVAR, depth 16, 256 px, half precision."""
    config = MVARConfig(depth=16)
    tokens = np.cumsum([side * side for side in config.sides])[:-1]  # nothing follows the last scale
    # Keys and values of every block; guidance samples each image with and without its label.
    keys_and_values = 2 * 2 * config.depth * config.width * 2 * tokens / 1e6
    f_hat = 4 * config.z_channels * config.sides[-1] ** 2 / 1e6
    places = np.arange(len(tokens))
    figure, axes = plt.subplots(figsize=(6.6, 2.8), layout="constrained")
    bars = axes.bar(
        places, keys_and_values, 0.7, color=BLUE, label="VAR: keys and values of all scales so far"
    )
    axes.bar_label(bars, fmt="%.0f", fontsize=7, padding=2)
    axes.plot(places, [f_hat] * len(places), color=ORANGE, label=f"MVAR: f_hat alone, {f_hat * 1e3:.0f} KB")
    axes.set_xticks(places, [f"{side} x {side}" for side in config.sides[:-1]], fontsize=7)
    axes.set_ylabel("MB per image", fontsize=8)
    axes.set_xlabel("kept after this scale (depth 16, 256 px, half precision, with guidance)", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    save(figure, "how_cache.png")


def draw_cost() -> None:
    """how_cost.png: attended pairs by the side of the last scale."""
    sides = [16, 24, 32, 48, 64]
    counts: dict[str, list[int]] = {"VAR": [], "each scale alone, dense": [], "MVAR, windows of 7": []}
    for last in sides:
        scales = tuple(round(last * side / 16) for side in MVARConfig(depth=16).sides)
        dense = len(scales)
        counts["VAR"].append(Pyramid(scales, 7, dense, previous_scales=dense - 1).attended_pairs())
        counts["each scale alone, dense"].append(Pyramid(scales, 7, dense).attended_pairs())
        counts["MVAR, windows of 7"].append(Pyramid(scales, 7).attended_pairs())
    figure, axes = plt.subplots(figsize=(6.6, 3.2), layout="constrained")
    for (label, pairs), color in zip(counts.items(), (BLUE, GREY, ORANGE)):
        axes.plot(sides, pairs, marker="o", color=color, label=label)
        axes.annotate(
            f"{pairs[-1]:,}", (sides[-1], pairs[-1]), (6, -3), textcoords="offset points", fontsize=7
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(sides, [f"{side}\n{16 * side} px" for side in sides], fontsize=7)
    axes.minorticks_off()
    axes.tick_params(labelsize=7)
    axes.set_xlim(right=100)
    axes.set_xlabel("side of the last of ten scales, in tokens and, at 16 px a token, in pixels", fontsize=8)
    axes.set_ylabel("attended pairs per head", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    save(figure, "how_cost.png")


if __name__ == "__main__":
    plt.switch_backend("Agg")
    OUT.mkdir(parents=True, exist_ok=True)
    draw_scales()
    var = Pyramid(SMALL, 3).causal_mask().numpy()
    draw_mask("how_var.png", "VAR: its scale and all before it", var, SMALL)
    mvar = Pyramid(SMALL, 3, dense_scales=3).mask().numpy()
    draw_mask("how_mvar.png", "MVAR: windows of 3 within the scale", mvar, SMALL)
    draw_windows()
    draw_cache()
    draw_cost()
