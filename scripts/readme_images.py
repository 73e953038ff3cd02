"""Draw the images of README.md and docs/ into docs/images: `python scripts/readme_images.py`.

The digits and the emoji come from the embedded models, seeds as they come, the chart from
benchmarks/results/cpu-2-cores/attention.csv. Needs the `demo` extra and the package installed; takes under
a minute.
"""

from __future__ import annotations

import csv
from pathlib import Path

import matplotlib.pyplot as plt
from PIL import Image

from mvar_models import MVARPipeline

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "docs" / "images"
RESULTS = ROOT / "benchmarks" / "results" / "cpu-2-cores" / "attention.csv"
# Rows of the chart: (case, batch, heads) of the CSV and the label.
CASES = {
    ("grid 16", "1", "8"): "16 x 16 grid",
    ("grid 24", "1", "8"): "24 x 24 grid",
    ("grid 32", "1", "8"): "32 x 32 grid",
    ("grid 64", "1", "8"): "64 x 64 grid",
    ("VAR 256px", "1", "8"): "VAR pyramid, 256 px",
    ("pyramid 256px", "1", "8"): "MVAR pyramid, 256 px",
    ("pyramid 512px", "1", "8"): "MVAR pyramid, 512 px",
}
# The categories whose emoji one recognises; `mvar gallery` shows all of them.
EMOJI_CATEGORIES = ("smileys-emotion", "people-body", "flags", "symbols")
EMOJI_PER_CLASS = 6


def tile(images: list[Image.Image], columns: int, zoom: int, gap: int = 4) -> Image.Image:
    """Lay the images out row by row, each enlarged `zoom` times without smoothing."""
    side = images[0].width * zoom
    rows = -(-len(images) // columns)
    canvas = Image.new("RGB", (columns * (side + gap) - gap, rows * (side + gap) - gap), "white")
    for index, image in enumerate(images):
        place = (index % columns * (side + gap), index // columns * (side + gap))
        canvas.paste(image.resize((side, side), Image.Resampling.NEAREST), place)
    return canvas


def save(image: Image.Image, name: str) -> None:
    # The digits are grey, so one channel of 8 bits loses nothing that the eye could see.
    image.convert("L").save(OUT / name, optimize=True)


def draw_digits(pipeline: MVARPipeline) -> None:
    """Draw scales.png, three digits after each of the six scales."""
    digits = [3, 5, 8]
    scales = pipeline(digits, seed=0).scales
    save(tile([scale[i] for i in range(len(digits)) for scale in scales], columns=6, zoom=3), "scales.png")


def draw_emoji(pipeline: MVARPipeline) -> None:
    """Draw emoji.png, a row per category with both styles, and emoji_scales.png, emoji after each scale."""
    rows = []
    for category in EMOJI_CATEGORIES:
        labels = [f"{style}-{category}" for style in ("fluent", "noto")]
        rows += pipeline(labels, num_images_per_label=EMOJI_PER_CLASS, seed=0)
    tile(rows, 2 * EMOJI_PER_CLASS, zoom=1).save(OUT / "emoji.png", optimize=True)
    shown = ["fluent-smileys-emotion", "noto-people-body", "noto-flags"]
    scales = pipeline(shown, seed=0).scales
    images = [scale[i] for i in range(len(shown)) for scale in scales]
    tile(images, len(scales), zoom=1).save(OUT / "emoji_scales.png", optimize=True)


def draw_speedup() -> None:
    """Draw speedup.png: `auto` against dense SDPA on two CPU cores, forward and with backward."""
    measured = {}
    with RESULTS.open(newline="") as file:
        for row in csv.DictReader(file):
            plain = row["dtype"] == "float32" and row["cosine"] == "False" and row["kernel_size"] == "7"
            if row["competitor"] == "mvar auto" and plain and row["speedup"] and row["head_dim"] == "64":
                key = (row["case"], row["batch"], row["heads"])
                measured[key, row["direction"]] = float(row["speedup"])
    figure, axes = plt.subplots(figsize=(6.6, 3.3), layout="constrained")
    for shift, direction, label, color in (
        (-0.19, "forward", "forward", "#4c72b0"),
        (0.19, "both", "forward and backward", "#dd8452"),
    ):
        places = [index + shift for index in range(len(CASES))]
        bars = axes.barh(places, [measured[key, direction] for key in CASES], 0.36, label=label, color=color)
        axes.bar_label(bars, fmt="%.1f x", padding=3, fontsize=8)
    axes.axvline(1, color="0.3", linewidth=1)
    axes.set_xlim(0, 16)
    axes.set_xlabel(
        "speed-up over dense SDPA (two CPU cores, float32, 8 heads of 64, windows of 7)", fontsize=8
    )
    axes.set_yticks(range(len(CASES)), list(CASES.values()))
    axes.tick_params(labelsize=8)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    figure.savefig(OUT / "speedup.png", dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    plt.switch_backend("Agg")
    OUT.mkdir(parents=True, exist_ok=True)
    draw_digits(MVARPipeline.from_pretrained("mvar-digits"))
    draw_emoji(MVARPipeline.from_pretrained("mvar-emoji"))
    draw_speedup()
    for path in sorted(OUT.glob("*.png")):
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1024:.0f} KB")
