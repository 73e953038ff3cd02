"""The folder that `mvar sample` writes: a PNG per image, a grid, and samples.json to sample them again."""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch

from mvar_models.files import file_stem, held, replacing, write_text
from mvar_models.images import grid
from mvar_models.pipeline import Pipeline
from mvar_models.pipeline.identity import drawing_weights, scorer_identity
from mvar_models.records import FileName, Must, read_record, within
from mvar_models.sampling.progress import SAMPLING, counting
from mvar_models.sampling.settings import SamplingSettings

logger = logging.getLogger(__name__)

RECORD = "samples.json"
_GRID_IMAGES = 400
_OURS = re.compile(r"\d{5,}_[\w-]+\.png")


@dataclass(frozen=True)
class SampledImage:
    """Label and seed of an image, and where it was written."""

    ignores_unknown: ClassVar[bool] = True

    file: FileName
    label: Annotated[int, within(0, 1 << 31)]
    seed: Annotated[int, within(0, (1 << 64) - 1)]
    name: str | None = None


@dataclass(frozen=True)
class Versions:
    ignores_unknown: ClassVar[bool] = True

    mvar: str | None = None
    torch: str | None = None


@dataclass(frozen=True)
class Samples:
    """Hold what decides the images of a folder, as samples.json does.

    Attributes:
        model: Any of `locate.FORMS`.
        arch: Architecture of a released .pth that does not say which it is.
        vqvae: Name or path of the VQVAE; None is the checkpoint's own.
        dtype: Type of the weights.
        settings: Settings of sampling.
        images: The images in order.
        batch_size: Images computed at a time. On a GPU the last bits of an image depend on it.
        model_weights: Content of the weights, see `drawing_weights`; None before anything is written.
        scorer_weights: Content of the scorer, if the settings name one.
        refiner: Zoo name, folder, file or Hub id of the model that samples the fine scales; None is `model`.
        refine_from: Its first scale.
        refiner_settings: Its settings of sampling.
        refiner_weights: As `model_weights`, of the refiner.
        versions: Versions that the images were sampled with.
    """

    ignores_unknown: ClassVar[bool] = True

    model: str
    arch: str | None
    vqvae: str | None
    dtype: Literal["float32", "bfloat16", "float16"]
    settings: SamplingSettings
    images: Annotated[Sequence[SampledImage], Must("of at least one image", lambda images: len(images) > 0)]
    batch_size: Annotated[int, within(1, 1 << 31)] = 32
    model_weights: str | None = None
    scorer_weights: str | None = None
    refiner: str | None = None
    refine_from: int | None = None
    refiner_settings: SamplingSettings | None = None
    refiner_weights: str | None = None
    versions: Versions = Versions()


def images_of(labels: Sequence[int], seed: int, names: Sequence[str] | None) -> list[SampledImage]:
    """Return the images of labels; image i has `seed` + i."""
    return [
        SampledImage(f"{index:05d}_{file_stem(name) or label}.png", label, seed + index, name or None)
        for index, label in enumerate(labels)
        for name in (names[label] if names else "",)
    ]


def write_samples(
    pipeline: Pipeline, samples: Samples, out: Path, columns: int, refiner: Pipeline | None = None
) -> Samples:
    """Sample the images and write the folder; return its record.

    Each PNG is written as soon as it is sampled. The record and the images of an earlier call are removed
    first, and the record is written last, so that it means that its images are all there, and no others.

    Args:
        pipeline: Samples the images.
        samples: Settings and images.
        out: The folder.
        columns: Columns of the grid, which holds the first 400 images.
        refiner: Samples the fine scales, if `samples` names one.

    Raises:
        FolderInUse: another process writes into the folder.
    """
    out.mkdir(parents=True, exist_ok=True)
    total, batch_size = len(samples.images), samples.batch_size
    shown: list[Any] = []
    with held(out, "is writing samples"), counting(SAMPLING, total):
        _remove_earlier(out)
        for start in range(0, total, batch_size):
            batch = samples.images[start : start + batch_size]
            output = pipeline(
                [each.label for each in batch],
                seed=[each.seed for each in batch],
                batch_size=batch_size,
                refiner=refiner,
                refine_from=samples.refine_from,
                **samples.settings.to_dict(),
            )
            for image, each in zip(output, batch):
                with replacing(out / each.file) as temporary:
                    image.save(temporary, format="png")
            shown += output[: _GRID_IMAGES - len(shown)]
        with replacing(out / "grid.png") as temporary:
            grid(shown, columns=columns).save(temporary, format="png")
        weights = drawing_weights(pipeline)
        versions = Versions(weights["mvar"], torch.__version__)
        of_refiner = None if refiner is None else drawing_weights(refiner)["model_weights"]
        samples = replace(
            samples, model_weights=weights["model_weights"], refiner_weights=of_refiner, versions=versions,
            scorer_weights=scorer_identity(samples.settings),
        )  # fmt: skip
        record = {"again": f"mvar sample --again {out / RECORD}", **asdict(samples)}
        write_text(out / RECORD, json.dumps(record, indent=2) + "\n")
    return samples


def check_again(samples: Samples, pipeline: Pipeline, path: Path, refiner: Pipeline | None = None) -> None:
    """Raise ValueError if the images of a record can no longer be sampled; warn where that is not known."""
    parts = [(samples.model, samples.model_weights, drawing_weights(pipeline)["model_weights"])]
    if refiner is not None:
        own = drawing_weights(refiner)["model_weights"]
        parts.append((str(samples.refiner), samples.refiner_weights, own))
    if samples.settings.scorer is not None:
        parts.append(
            (samples.settings.scorer, samples.scorer_weights, str(scorer_identity(samples.settings)))
        )
    for name, before, now in parts:
        if before is None:
            logger.warning("%s does not say which weights drew its images; they may differ", path)
        elif before != now:
            raise ValueError(
                f"{path}: {name} holds other weights now than those that drew these images; "
                "name the old ones in the file, or draw anew with --model"
            )
    version = drawing_weights(pipeline)["mvar"]
    if samples.model_weights is not None and samples.versions.mvar != version:
        logger.warning(
            "%s is of mvar %s, this is %s: the images may differ", path, samples.versions.mvar, version
        )


def _remove_earlier(out: Path) -> None:
    """Remove a record, its grid, and those of its images that are called as `write_samples` calls them."""
    record = out / RECORD
    with contextlib.suppress(OSError, ValueError):
        for image in read_record(record, Samples).images:
            if _OURS.fullmatch(image.file):
                (out / image.file).unlink(missing_ok=True)
        (out / "grid.png").unlink(missing_ok=True)
    record.unlink(missing_ok=True)


def read_samples(path: Path) -> Samples:
    """Read what `write_samples` recorded.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; --again takes the {RECORD} that mvar sample wrote")
    return read_record(path, Samples)
