"""What a model can do, as contact sheets: its classes, its scales, an in-painting and a change of class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mvar_models.files import numbered, replacing, write_text
from mvar_models.images import grid
from mvar_models.pipeline import Pipeline

INDEX = "index.md"
# Small images are enlarged to about this side, by whole pixels.
_SHOWN_SIDE = 96
_MOST_CLASSES = 20
_EXAMPLES = 4
_GAP = 2


def draw_gallery(
    pipeline: Pipeline,
    out: Path,
    *,
    name: str,
    labels: Sequence[int | str] | None = None,
    samples: int = 6,
    seed: int = 0,
    **options: Any,
) -> list[Path]:
    """Draw the sheets of a model and an index of them; the index is written last.

    Args:
        pipeline: What draws.
        out: Folder to write to.
        name: The model's name in the index.
        labels: Class numbers or names. Default: all, or twenty spread evenly over more.
        samples: Images per class, and of the in-painting.
        seed: Image i of a sheet takes seed + i.
        options: guidance_scale, guidance_schedule, top_k, top_p and sampler, as the pipeline takes them.

    Returns:
        The files written: a PNG per sheet, and the index.
    """
    numbers = [pipeline.label_of(label) for label in labels] if labels else _spread(pipeline)
    names = pipeline.model.config.class_names
    # Classes may share a name, as two of ImageNet's that are called crane, and a label may come twice.
    rows = numbered([str(number) if names is None else names[number] for number in numbers])
    given = {key: value for key, value in options.items() if value is not None}
    examples = slice(0, _EXAMPLES)

    out.mkdir(parents=True, exist_ok=True)
    (out / INDEX).unlink(missing_ok=True)
    drawn = pipeline(numbers, num_images_per_label=samples, seed=seed, **given)
    by_class = [drawn[start : start + samples] for start in range(0, len(drawn), samples)]
    firsts = [images[0] for images in by_class][examples]
    _, scales = pipeline(
        numbers[examples],
        seed=[seed + samples * i for i in range(len(firsts))],
        return_scales=True,
        **given,
    )
    sheets = {
        "classes": ("Images of each class", dict(zip(rows, by_class))),
        "scales": (
            "After each scale",
            {row: [images[i] for images in scales] for i, row in enumerate(rows[examples])},
        ),
        "inpainting": (
            "The middle drawn again: the image, what is kept of it, and in-paintings",
            _inpaintings(pipeline, firsts, numbers, rows, samples, seed, given),
        ),
        "classes_changed": (
            "The coarse half of the scales kept, the others drawn as another class: the image, and that",
            _changes(pipeline, firsts, numbers, rows, seed, given),
        ),
    }
    files = []
    lines = [f"# {name}", ""]
    for file, (title, images) in sheets.items():
        files.append(out / f"{file}.png")
        with replacing(files[-1]) as temporary:
            sheet(images).save(temporary, format="PNG")
        lines += [f"## {title}", "", f"![{title}]({file}.png)", ""]
    files.append(out / INDEX)
    write_text(files[-1], "\n".join(lines))
    return files


def sheet(rows: Mapping[str, Sequence[Image.Image]]) -> Image.Image:
    """Paste rows of images of one size below each other, each after its name.

    Args:
        rows: Name -> images; rows may differ in length.
    """
    width, height = next(iter(rows.values()))[0].size
    zoom = max(1, round(_SHOWN_SIDE / max(width, height)))
    columns = max(map(len, rows.values()))
    blank = Image.new("RGB", (width * zoom, height * zoom), "white")
    cells = []
    for images in rows.values():
        large = [image.resize(blank.size, Image.Resampling.NEAREST) for image in images]
        cells += large + [blank] * (columns - len(large))
    body = grid(cells, columns, _GAP)
    font = ImageFont.load_default()
    margin = 8 + int(max(font.getlength(name) for name in rows))
    canvas = Image.new("RGB", (margin + body.width, body.height), "white")
    canvas.paste(body, (margin, 0))
    pen = ImageDraw.Draw(canvas)
    for index, name in enumerate(rows):
        top = index * (blank.height + _GAP)
        pen.text((4, top + blank.height // 2 - 6), name, fill="black", font=font)
    return canvas


def _spread(pipeline: Pipeline) -> list[int]:
    count = pipeline.model.config.num_classes
    return sorted({int(number) for number in np.linspace(0, count - 1, min(count, _MOST_CLASSES))})


def _inpaintings(
    pipeline: Pipeline,
    images: Sequence[Image.Image],
    numbers: Sequence[int],
    rows: Sequence[str],
    samples: int,
    seed: int,
    given: Mapping[str, Any],
) -> dict[str, list[Image.Image]]:
    side = images[0].width
    hole = (side // 4, side // 4, side - side // 4, side - side // 4)
    mask = Image.new("L", images[0].size, 0)
    mask.paste(255, hole)
    found = {}
    for image, number, row in zip(images, numbers, rows):
        kept = image.copy()
        kept.paste((128, 128, 128), hole)
        drawn = pipeline.inpaint(
            image, mask, [number], seed=seed + 1000, num_images_per_label=samples, **given
        )
        found[row] = [image, kept, *drawn]
    return found


def _changes(
    pipeline: Pipeline,
    images: Sequence[Image.Image],
    numbers: Sequence[int],
    rows: Sequence[str],
    seed: int,
    given: Mapping[str, Any],
) -> dict[str, list[Image.Image]]:
    half = len(pipeline.model.config.sides) // 2
    found = {}
    for index, (image, row) in enumerate(zip(images, rows)):
        following = (index + 1) % len(numbers)
        drawn = pipeline.vary(image, half, [numbers[following]], seed=seed + 2000, **given)
        found[f"{row} as {rows[following]}"] = [image, *drawn]
    return found
