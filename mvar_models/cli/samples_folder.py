"""The folder that `mvar sample` writes: a PNG per image, a grid, and samples.json to draw them again."""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch

from mvar_models.cli.common import count_progress
from mvar_models.files import replacing, write_text
from mvar_models.images import grid
from mvar_models.pipeline import Pipeline, pipeline_for
from mvar_models.pipeline.identity import drawing_weights
from mvar_models.records import FileName, Must, read_record, within

logger = logging.getLogger(__name__)

RECORD = "samples.json"
_GRID_IMAGES = 400
_OURS = re.compile(r"\d{5,}_\d+\.png")


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
        drawn_by: Of a record, what `drawing_weights` said when the images were drawn.
    """

    model: str
    arch: str | None
    vqvae: str | None
    dtype: str
    options: dict[str, Any] = field(default_factory=dict)
    labels: list[int] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    batch_size: int = 32
    drawn_by: dict[str, Any] = field(default_factory=dict, compare=False)

    def pipeline(self, device: str) -> Pipeline:
        """Load the checkpoint and its VQVAE."""
        dtype = getattr(torch, self.dtype)
        return pipeline_for(self.model, arch=self.arch, vqvae=self.vqvae, device=device, dtype=dtype)


@dataclass(frozen=True)
class _Options:
    guidance_scale: float | None = None
    guidance_schedule: str | None = None
    top_k: int | None = None
    top_p: float | None = None
    sampler: str | None = None
    more_smooth: bool | None = None


@dataclass(frozen=True)
class _Image:
    ignores_unknown: ClassVar[bool] = True

    file: FileName
    label: Annotated[int, within(0, 1 << 31)]
    seed: Annotated[int, within(0, (1 << 64) - 1)]


@dataclass(frozen=True)
class _Versions:
    ignores_unknown: ClassVar[bool] = True

    mvar: str | None = None


@dataclass(frozen=True)
class _Record:
    ignores_unknown: ClassVar[bool] = True

    model: str
    arch: str | None
    vqvae: str | None
    dtype: Literal["float32", "bfloat16", "float16"]
    options: _Options
    pictures: Annotated[Sequence[_Image], Must("of at least one image", lambda images: len(images) > 0)]
    batch_size: Annotated[int, within(1, 1 << 31)] = 32
    model_weights: str | None = None
    versions: _Versions = _Versions()


def write_samples(pipeline: Pipeline, sampling: Sampling, out: Path, columns: int) -> int:
    """Draw the images and write the folder; returns how many there are.

    Each PNG is written as soon as it is drawn. The record and the images of an earlier call are removed
    first, and the record is written last, so that it means that its images are all there, and no others.

    Args:
        pipeline: What `sampling.pipeline` returned.
        sampling: Options, labels and seeds.
        out: The folder.
        columns: Columns of the grid, which holds the first 400 images.
    """
    out.mkdir(parents=True, exist_ok=True)
    _remove_earlier(out)
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
    record = _record(replace(sampling, drawn_by=drawing_weights(pipeline)), out, written)
    write_text(out / RECORD, json.dumps(record, indent=2) + "\n")
    return total


def check_again(sampling: Sampling, pipeline: Pipeline, path: Path) -> None:
    """Raise ValueError if the images of a record can no longer be drawn; warn where that is not known."""
    before, now = sampling.drawn_by, drawing_weights(pipeline)
    weights = before.get("model_weights")
    if weights is None:
        logger.warning("%s does not say which weights drew its images; they may differ", path)
    elif weights != now["model_weights"]:
        raise ValueError(
            f"{path}: {sampling.model} holds other weights now than those that drew these images; "
            "name the old ones in the file, or draw anew with --model"
        )
    elif before.get("mvar") != now["mvar"]:
        logger.warning(
            "%s is of mvar %s, this is %s: the images may differ", path, before.get("mvar"), now["mvar"]
        )


def _remove_earlier(out: Path) -> None:
    """Remove a record, its grid, and those of its images that are called as `write_samples` calls them."""
    record = out / RECORD
    with contextlib.suppress(OSError, ValueError):
        for image in read_record(record, _Record).pictures:
            if _OURS.fullmatch(image.file):
                (out / image.file).unlink(missing_ok=True)
        (out / "grid.png").unlink(missing_ok=True)
    record.unlink(missing_ok=True)


def read_samples(path: Path) -> Sampling:
    """Read what `write_samples` recorded.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; --again takes the {RECORD} that mvar sample wrote")
    record = read_record(path, _Record)
    options = {name: value for name, value in asdict(record.options).items() if value is not None}
    return Sampling(
        record.model,
        record.arch,
        record.vqvae,
        record.dtype,
        options,
        [image.label for image in record.pictures],
        [image.seed for image in record.pictures],
        record.batch_size,
        {"model_weights": record.model_weights, "mvar": record.versions.mvar},
    )


def _record(sampling: Sampling, out: Path, written: list[dict[str, Any]]) -> dict[str, Any]:
    apart = ("labels", "seeds", "drawn_by")
    settings = {name: value for name, value in asdict(sampling).items() if name not in apart}
    return {
        "again": f"mvar sample --again {out / RECORD}",
        "versions": {"mvar": sampling.drawn_by["mvar"], "torch": torch.__version__},
        "model_weights": sampling.drawn_by["model_weights"],
        **settings,
        "pictures": written,  # the key of 0.1.0, whose files are still read
    }
