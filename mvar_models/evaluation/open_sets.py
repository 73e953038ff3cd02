"""Open image sets by name: existing images, reconstructions, model samples."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from torch import Tensor

from mvar_models.data.folders import ClassFolders
from mvar_models.data.open import DIGITS, check_data_exists, open_images
from mvar_models.data.source import ImageSource
from mvar_models.distributed import Processes
from mvar_models.evaluation.image_sets import ArrayImages, FileImages, ImageSet, SourceImages
from mvar_models.evaluation.likelihood import labels_of_model
from mvar_models.evaluation.npz import NpzImages, write_npz
from mvar_models.evaluation.reconstruction import check_reconstruction, reconstructed_images
from mvar_models.files import file_names
from mvar_models.images import to_uint8
from mvar_models.networks.vqvae import VQVAE
from mvar_models.pipeline import Pipeline, pipeline_for
from mvar_models.pipeline.inputs import images_of
from mvar_models.pipeline.output import PipelineOutput
from mvar_models.records import FileName, read_record, within
from mvar_models.sampling.settings import SamplingSettings

PARTS = ("train", "held-out")
_DIGITS_SIDE = 32
_CONVERTED = 64
# Beside the PNGs of `mvar sample`.
_RECORD = "samples.json"


@dataclass(frozen=True)
class ResolvedSet:
    """A row of the table of `mvar evaluate`.

    Attributes:
        images: The images.
        folder: Name of its folder where there are several sets; no two have the same.
        pipeline: Sampled them; None for images that existed.
    """

    images: ImageSet
    folder: str
    pipeline: Pipeline | None = None


def resolve_sets(
    places: Sequence[str],
    models: Sequence[str],
    *,
    per_class: int,
    seed: int,
    options: Mapping[str, Any],
    reconstruct: str | None,
    resolution: int | None,
    out: Path | None,
    processes: Processes,
    held_out: ImageSource | None = None,
    accept_psnr: bool = False,
) -> list[ResolvedSet]:
    """Resolve the image sets of `mvar evaluate`: existing images, reconstructions, model samples.

    Args:
        places: Names of existing images.
        models: Names of models, as `locate` takes them.
        per_class: Images that each model samples of every class.
        seed: Seed of the first image of each model.
        options: Settings of sampling; None is the checkpoint's own.
        reconstruct: Name of a VQVAE, whose reconstructions of all `places` are sets too.
        resolution: Side of the images of datasets; default: that of the models or of the VQVAE.
        out: Folder for samples, which continue where they were stopped; not needed without models.
        processes: Those that sample together.
        held_out: Images whose likelihood will be asked for.
        accept_psnr: Take any VQVAE for them; see `check_reconstruction`.

    Raises:
        ValueError: a model lacks classes of `held_out`, or its VQVAE does not fit them.
    """
    device = str(processes.device)
    # All is opened and named before anything is sampled, which may take hours.
    stems = [name.removesuffix(".npz") for name in (*places, *models)]
    through = [f"{stem}-reconstructed" for stem in stems[: len(places)] if reconstruct is not None]
    folders = file_names([*stems, *through])
    pipelines = [
        processes.first_then_others(lambda name=name: pipeline_for(name, device=device))  # type: ignore[misc]
        for name in models
    ]
    if held_out is not None:
        assert out is not None, "models sample into a folder"
        for model, folder, pipeline in zip(models, folders[len(places) :], pipelines):
            labels_of_model(pipeline.model, held_out, held_out.labels[held_out.held_out])
            real, shown = (
                held_out.at(pipeline.vqvae.config.resolution),
                out / f"{folder}-reconstruction.png",
            )
            check_reconstruction(pipeline.vqvae, real, shown, name=model, accept=accept_psnr)
    vqvae = None if reconstruct is None else VQVAE.from_pretrained(reconstruct, device=device)
    vqvaes = [each for each in (vqvae, *(pipeline.vqvae for pipeline in pipelines)) if each is not None]
    if resolution is None and vqvaes:
        resolution = vqvaes[0].config.resolution
    sets = []
    for index, place in enumerate(places):
        images = open_set(place, resolution=resolution)
        sets.append(ResolvedSet(images, folders[index]))
        if vqvae is not None:
            images = reconstructed_images(images, vqvae, f"{place} through {reconstruct}")
            sets.append(ResolvedSet(images, folders[len(stems) + index]))
    for model, folder, pipeline in zip(models, folders[len(places) :], pipelines):
        assert out is not None, "models sample into a folder"
        file = out / f"{folder}.npz"
        config = pipeline.model.config
        settings: dict[str, Any] = {
            "per_class": per_class, "seed": seed, "checkpoint": {"model": model},
            "settings": SamplingSettings.of(config, **options),
        }  # fmt: skip
        file.parent.mkdir(parents=True, exist_ok=True)
        with processes.raising_together():
            write_npz(pipeline, file, processes=processes, **settings)
        # All parts are there now, if not yet joined.
        processes.run_on_rank0(lambda: write_npz(pipeline, file, **settings))  # noqa: B023
        images = NpzImages(file)
        images.name = model
        sets.append(ResolvedSet(images, folder, pipeline))
    return sets


@dataclass(frozen=True)
class _Sample:
    ignores_unknown: ClassVar[bool] = True

    file: FileName
    label: Annotated[int, within(0, 1 << 20)]
    name: str | None = None


@dataclass(frozen=True)
class _Samples:
    ignores_unknown: ClassVar[bool] = True

    images: Sequence[_Sample]


def open_set(place: Any, *, resolution: int | None = None, name: str = "") -> ImageSet:
    """Open images by name, or take those in memory.

    Args:
        place: Images as a pipeline returns them: a list of PIL images, its output, an array (N, H, W, 3) of
            uint8 or of floats in [0, 1], or such a tensor (N, 3, H, W); an .npz; a folder of images, or of
            one folder per class, or as `mvar sample` writes it; or a dataset as for `--data`. A dataset may
            end in "@train" or "@held-out", the parts that training uses and reserves. An `ImageSet` is
            returned as it is.
        resolution: Side that datasets and folders are resized and cropped to. Default: a folder's images as
            they are; 32 for digits.
        name: What messages call images in memory.

    Raises:
        TypeError: nothing of these.
        FileNotFoundError: nothing of that name.
        ValueError: it has no images that can be used; the message says why.
    """
    if isinstance(place, ImageSet):
        return place
    if not isinstance(place, str | os.PathLike):
        return _in_memory(place, name or "images")
    text = os.fspath(place)
    path, part = Path(text), ""
    if not path.exists() and "@" in text:
        text, _, part = text.rpartition("@")
        path = Path(text)
        if part not in PARTS:
            raise ValueError(f"{place}: after @ comes {' or '.join(PARTS)}, got {part!r}")
    if path.suffix == ".npz" and not part:
        return NpzImages(path)
    check_data_exists(text)
    if path.is_dir() and not part:
        if (path / _RECORD).is_file():
            return _samples(path)
        if resolution is None:
            source = open_images(text, _DIGITS_SIDE)
            if isinstance(source, ClassFolders):
                labels = source.labels if len(source.class_names) > 1 else None
                return FileImages(source.files, labels, str(place), source.class_names)
    if resolution is None and text != DIGITS:
        raise ValueError(f"{place}: the resolution is missing, which side should its images have?")
    side = resolution or _DIGITS_SIDE
    source = open_images(text, side)
    return SourceImages(source, _members(source, part, str(place)), str(place), side)


def _in_memory(images: Any, name: str) -> ArrayImages:
    """Convert images to uint8, some at a time: as floats they take four times the memory."""
    if isinstance(images, PipelineOutput):
        images = images.images
    if isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.shape[3:] == (3,):
        return ArrayImages(images, name=name)
    if isinstance(images, np.ndarray | Tensor):
        if images.ndim != 4:
            expected = "(n, H, W, 3)" if isinstance(images, np.ndarray) else "(n, 3, H, W)"
            raise ValueError(f"{name} must be {expected}, got {tuple(images.shape)}")
        parts = [images[start : start + _CONVERTED] for start in range(0, len(images), _CONVERTED)]
    elif isinstance(images, list | tuple):
        parts = list(images)
    else:
        raise TypeError(
            f"{name} must be a place, an ImageSet, or images: a list of PIL images, an array (n, H, W, 3), a "
            f"tensor (n, 3, H, W) or what a pipeline returns; got {type(images).__name__}"
        )
    converted = [to_uint8(image[None] * 2 - 1) for part in parts for image in images_of(part, name)]
    if not converted:
        raise ValueError(f"{name} must be at least one image, got none")
    sizes = [image.shape[1:3] for image in converted]
    other = next((index for index, size in enumerate(sizes) if size != sizes[0]), None)
    if other is not None:
        raise ValueError(
            f"{name} must be of one size: image {other} is {sizes[other][1]} x {sizes[other][0]}, "
            f"the first is {sizes[0][1]} x {sizes[0][0]}"
        )
    return ArrayImages(np.concatenate(converted), name=name)


def _samples(folder: Path) -> FileImages:
    """Open the folder that `mvar sample` writes, without its grid."""
    images = read_record(folder / _RECORD, _Samples).images
    files = [str(folder / image.file) for image in images]
    labels = np.array([image.label for image in images], dtype=np.int64)
    called = {image.label: image.name for image in images if image.name}
    names = [called.get(label, "") for label in range(max(called) + 1)] if called else None
    return FileImages(files, labels, str(folder), names)


def _members(source: ImageSource, part: str, place: str) -> np.ndarray:
    if part == "train":
        return source.train
    if part:
        if not len(source.split.reserved):
            raise ValueError(f"{place}: {len(source)} images are too few to hold any out")
        return source.split.reserved
    return np.arange(len(source))
