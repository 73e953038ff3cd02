"""The folder that `mvar sample` writes: a PNG per image, a grid, and samples.json to draw them again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from mvar_models import __version__
from mvar_models.cli.progress import count_progress
from mvar_models.files import replacing, write_text
from mvar_models.images import grid
from mvar_models.pipeline import Pipeline, pipeline_for

RECORD = "samples.json"
_GRID_IMAGES = 400


@dataclass(frozen=True)
class Sampling:
    """What decides the images.

    Attributes:
        model: Zoo name, folder, file or Hub id.
        arch: Architecture of a released .pth that does not say which it is.
        vqvae: Name or path of the VQVAE; None is the checkpoint's own.
        dtype: Type of the weights: "float32", "bfloat16" or "float16".
        options: Keyword arguments of the pipeline's call: guidance_scale, guidance_schedule, top_k, top_p,
            sampler, more_smooth.
        labels: Class of each image.
        seeds: Seed of each image.
        batch_size: Images drawn at a time. On a GPU the last bits of an image depend on it.
    """

    model: str
    arch: str | None
    vqvae: str | None
    dtype: str
    options: dict[str, Any] = field(default_factory=dict)
    labels: list[int] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    batch_size: int = 32

    def pipeline(self, device: str) -> Pipeline:
        """Load the checkpoint and its VQVAE."""
        dtype = getattr(torch, self.dtype)
        return pipeline_for(self.model, arch=self.arch, vqvae=self.vqvae, device=device, dtype=dtype)


def write_samples(pipeline: Pipeline, sampling: Sampling, out: Path, columns: int) -> int:
    """Draw the images and write the folder; returns how many there are.

    Each PNG is written as soon as it is drawn. The record is removed first and written last, so that a record
    means that all images are there.

    Args:
        pipeline: What `sampling.pipeline` returned.
        sampling: Options, labels and seeds.
        out: The folder.
        columns: Columns of the grid, which holds the first 400 images.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / RECORD).unlink(missing_ok=True)
    names, total, batch_size = pipeline.model.config.class_names, len(sampling.labels), sampling.batch_size
    shown: list[Any] = []
    written: list[dict[str, Any]] = []
    with count_progress("image") as report:
        for start in range(0, total, batch_size):
            labels = sampling.labels[start : start + batch_size]
            seeds = sampling.seeds[start : start + batch_size]
            images = pipeline(labels, seed=seeds, batch_size=batch_size, **sampling.options)
            for image, label, seed in zip(images, labels, seeds):
                file = f"{len(written):05d}_{label}.png"
                with replacing(out / file) as temporary:
                    image.save(temporary, format="png")
                name = names[label] if names else None
                written.append({"file": file, "label": label, "name": name, "seed": seed})
                if len(shown) < _GRID_IMAGES:
                    shown.append(image)
            report(len(written), total)
    with replacing(out / "grid.png") as temporary:
        grid(shown, columns=columns).save(temporary, format="png")
    write_text(out / RECORD, json.dumps(_record(sampling, out, written), indent=2) + "\n")
    return total


def read_samples(path: Path) -> Sampling:
    """Read what `write_samples` recorded.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; --again takes the {RECORD} that mvar sample wrote")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        checkpoint = {name: values[name] for name in ("model", "arch", "vqvae", "dtype", "options")}
        labels, seeds = ([image[name] for image in values["pictures"]] for name in ("label", "seed"))
        return Sampling(**checkpoint, labels=labels, seeds=seeds, batch_size=values.get("batch_size", 32))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no {RECORD} of mvar sample: {type(error).__name__} {error}") from None


def _record(sampling: Sampling, out: Path, written: list[dict[str, Any]]) -> dict[str, Any]:
    settings = {name: value for name, value in asdict(sampling).items() if name not in ("labels", "seeds")}
    return {
        "again": f"mvar sample --again {out / RECORD}",
        "versions": {"mvar": __version__, "torch": torch.__version__},
        **settings,
        "pictures": written,  # the key of 0.1.0, whose files are still read
    }
