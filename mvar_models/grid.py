"""Pictures side by side."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image


def grid(pictures: Sequence[Image.Image], columns: int, gap: int = 2) -> Image.Image:
    """One picture with all `pictures` (of one size) row by row, on white."""
    if not pictures:
        raise ValueError("a grid needs at least one picture")
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    canvas = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for index, picture in enumerate(pictures):
        canvas.paste(picture, ((index % columns) * (width + gap), (index // columns) * (height + gap)))
    return canvas
