"""Contact sheets of a model: its classes, its scales, an in-painting and a change of class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mvar_models.files import numbered, replacing, write_text
from mvar_models.images import sheet
from mvar_models.pipeline import Pipeline
from mvar_models.sampling.progress import SAMPLING, counting

INDEX = "index.md"
_MOST_CLASSES = 20
_EXAMPLES = 4


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
    """Write the sheets of a model and an index of them; the index is written last.

    Args:
        pipeline: The model's.
        out: Folder to write to.
        name: The model's name in the index.
        labels: Class numbers or names. Default: all, or twenty evenly spaced over more.
        samples: Images per class, and of the in-painting.
        seed: Image i of a sheet takes seed + i.
        options: Fields of `SamplingSettings`, as the pipeline takes them.

    Returns:
        The files written: a PNG per sheet, and the index.
    """
    numbers = [pipeline.label_of(label) for label in labels] if labels else _evenly_spaced(pipeline)
    names = pipeline.model.config.class_names
    # Classes may share a name, as two of ImageNet's that are called crane, and a label may come twice.
    rows = numbered([str(number) if names is None else names[number] for number in numbers])
    given = {key: value for key, value in options.items() if value is not None}
    examples = slice(0, _EXAMPLES)

    def inpaintings(image: Image.Image, number: int) -> list[Image.Image]:
        side = image.width
        hole = (side // 4, side // 4, side - side // 4, side - side // 4)
        mask, kept = Image.new("L", image.size, 0), image.copy()
        mask.paste(255, hole)
        kept.paste((128, 128, 128), hole)
        painted = pipeline.inpaint(
            image, mask, [number], seed=seed + 1000, num_images_per_label=samples, **given
        )
        return [image, kept, *painted]

    def changed(image: Image.Image, number: int) -> Iterable[Image.Image]:
        half = len(pipeline.model.config.sides) // 2
        return pipeline.vary(image, half, [number], seed=seed + 2000, **given)

    out.mkdir(parents=True, exist_ok=True)
    (out / INDEX).unlink(missing_ok=True)
    few = min(_EXAMPLES, len(numbers))
    with counting(SAMPLING, len(numbers) * samples + few * (samples + 2)):
        images = pipeline(numbers, num_images_per_label=samples, seed=seed, **given)
        by_class = [images[start : start + samples] for start in range(0, len(images), samples)]
        firsts = [row[0] for row in by_class][examples]
        following = [(index + 1) % len(numbers) for index in range(len(firsts))]
        seeds = [seed + samples * i for i in range(len(firsts))]
        scales = pipeline(numbers[examples], seed=seeds, **given).scales
        sheets = {
            "classes": ("Images of each class", dict(zip(rows, by_class))),
            "scales": (
                "After each scale",
                {row: [images[i] for images in scales] for i, row in enumerate(rows[examples])},
            ),
            "inpainting": (
                "The middle in-painted: the image, what is kept of it, and in-paintings",
                dict(zip(rows, map(inpaintings, firsts, numbers))),
            ),
            "classes_changed": (
                "The coarse half of the scales kept, the others of another class: the image, and that",
                {
                    f"{row} as {rows[other]}": [image, *changed(image, numbers[other])]
                    for row, image, other in zip(rows, firsts, following)
                },
            ),
        }
    files = []
    lines = [f"# {name}", ""]
    for file, (title, cells) in sheets.items():
        files.append(out / f"{file}.png")
        with replacing(files[-1]) as temporary:
            sheet(cells).save(temporary, format="PNG")
        lines += [f"## {title}", "", f"![{title}]({file}.png)", ""]
    files.append(out / INDEX)
    write_text(files[-1], "\n".join(lines))
    return files


def _evenly_spaced(pipeline: Pipeline) -> list[int]:
    count = pipeline.model.config.num_classes
    return sorted({int(number) for number in np.linspace(0, count - 1, min(count, _MOST_CLASSES))})
