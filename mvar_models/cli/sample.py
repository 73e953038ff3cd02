"""The command `mvar sample`: images as PNGs with a record, or in the one file that FID programs read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from mvar_models.checkpoints.locate import FORMS
from mvar_models.cli.common import OutFile, require_same_options
from mvar_models.cli.drawing_options import (
    checkpoint_options,
    chosen_labels,
    filter_options,
    load_pipeline,
    seed_option,
)
from mvar_models.cli.samples_folder import (
    RECORD,
    Samples,
    check_again,
    images_of,
    read_samples,
    write_samples,
)
from mvar_models.distributed import Processes
from mvar_models.evaluation.npz import write_npz
from mvar_models.pipeline import Pipeline
from mvar_models.sampling.settings import SamplingSettings

# Without --labels: all classes if there are few, else this many, spread evenly.
_DEFAULT_CLASSES = 10
_WITH_AGAIN = ("again", "out", "device", "batch_size", "compiled")


@click.command()
@checkpoint_options
@click.option(
    "--labels",
    default=None,
    help="Class numbers or names, separated by commas. Default: all classes, or ten spread evenly over many.",
)
@click.option("--n", default=8, type=click.IntRange(min=1), help="Images per label.")
@seed_option("Image i takes seed + i.")
@filter_options
@click.option("--batch-size", default=32, type=click.IntRange(min=1), help="Images drawn at a time.")
@click.option(
    "--per-class", type=click.IntRange(min=1), default=None, help="With --npz: images of every class."
)
@click.option(
    "--npz",
    type=OutFile(".npz"),
    default=None,
    help="Write one file for FID programs instead of PNGs.",
)
@click.option(
    "--compile",
    "compiled",
    is_flag=True,
    help="On an NVIDIA GPU: draw by CUDA graphs. The images are the same.",
)
@click.option(
    "--refiner", default=None, help=f"Model of the same VQVAE that samples the fine scales: {FORMS}."
)
@click.option(
    "--refine-from", type=click.IntRange(min=1), default=None, help="With --refiner: its first scale, from 0."
)
@click.option(
    "--again",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Draw the images of this samples.json again.",
)
@click.option(
    "--out",
    "-o",
    default="samples",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the PNGs.",
)
@click.pass_context
def sample(
    context: click.Context,
    labels: str | None,
    n: int,
    seed: int,
    preset: Path | None,
    per_class: int | None,
    npz: Path | None,
    again: Path | None,
    out: Path,
    batch_size: int,
    device: str | None,
    compiled: bool,
    refiner: str | None,
    refine_from: int | None,
    **given: Any,
) -> None:
    """Draw images: one PNG each, a grid, and samples.json, from which --again draws them again.

    With --per-class 50 --npz FILE it draws that many images of every class into one .npz, the file that FID
    programs read. A stopped run continues where it was when started again. Under torchrun the processes share
    the work; the images are the same.
    """
    processes = Processes.from_environment(device)
    place = str(processes.device)
    if again is not None:
        _check_again(context)
        samples = read_samples(again)
        if _is_given(context, "batch_size"):
            samples = replace(samples, batch_size=batch_size)
        pipeline = load_pipeline(
            samples.model, arch=samples.arch, vqvae=samples.vqvae, dtype=samples.dtype, device=place
        )
        fine = _load_refiner(samples, place)
        check_again(samples, pipeline, again, fine)
        _write_folder(pipeline.compile() if compiled else pipeline, samples, out, 8, fine)
        return
    if (per_class is None) != (npz is None):
        raise click.UsageError("--per-class and --npz go together")
    if npz is not None and labels is not None:
        raise click.UsageError("--npz takes every class; leave out --labels")
    if (refiner is None) != (refine_from is None) or (refiner is not None and npz is not None):
        raise click.UsageError("--refiner and --refine-from go together, without --npz")
    checkpoint = {name: given.pop(name) for name in ("model", "arch", "vqvae", "dtype")}
    pipeline = load_pipeline(**checkpoint, device=place, preset=preset)
    if compiled:
        pipeline.compile()
    config = pipeline.model.config
    settings = SamplingSettings.of(config, **given)
    if npz is not None and per_class is not None:
        options = {"seed": seed, "batch_size": batch_size, "settings": settings, "checkpoint": checkpoint}
        _write_npz(pipeline, npz, per_class, processes, **options)
        return
    chosen = chosen_labels(labels, pipeline) or default_labels(config.num_classes)
    each = [number for number in map(pipeline.label_of, chosen) for _ in range(n)]
    images = images_of(each, seed, config.class_names)
    samples = Samples(
        **checkpoint, settings=settings, images=images, batch_size=batch_size, refiner=refiner,
        refine_from=refine_from,
    )  # fmt: skip
    fine = _load_refiner(samples, place)
    if fine is not None:
        own = SamplingSettings.of(fine.model.config, **given)
        fine.model.config = fine.model.config.replace(**own.to_dict())
        samples = replace(samples, refiner_settings=own)
    _write_folder(pipeline, samples, out, n, fine)


def default_labels(num_classes: int) -> list[int]:
    """Return the classes to draw when none are given: all of a few, else ten spread evenly."""
    count = min(num_classes, _DEFAULT_CLASSES)
    return [num_classes * i // count for i in range(count)]


def _check_again(context: click.Context) -> None:
    given = [name for name in context.params if _is_given(context, name)]
    extra = sorted("--" + name.replace("_", "-") for name in given if name not in _WITH_AGAIN)
    if extra:
        raise click.UsageError(f"--again draws what the file says; leave out {', '.join(extra)}")


def _is_given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def _load_refiner(samples: Samples, place: str) -> Pipeline | None:
    if samples.refiner is None:
        return None
    refiner = load_pipeline(
        samples.refiner, arch=None, vqvae=samples.vqvae, dtype=samples.dtype, device=place
    )
    if samples.refiner_settings is not None:
        refiner.model.config = refiner.model.config.replace(**samples.refiner_settings.to_dict())
    return refiner


def _write_folder(
    pipeline: Pipeline, samples: Samples, out: Path, columns: int, refiner: Pipeline | None
) -> None:
    write_samples(pipeline, samples, out, columns, refiner)
    click.echo(f"{len(samples.images)} images, grid.png and {RECORD} in {out}")


def _write_npz(pipeline: Pipeline, npz: Path, per_class: int, processes: Processes, **options: Any) -> None:
    processes.connect()
    try:
        require_same_options(processes)
        processes.require_shared(npz.parent)
        with processes.raising_together():
            write_npz(pipeline, npz, per_class=per_class, processes=processes, **options)
        # All parts are there now, if not yet joined.
        processes.run_on_rank0(lambda: write_npz(pipeline, npz, per_class=per_class, **options))
    finally:
        processes.close()
    if processes.first:
        click.echo(f"{pipeline.model.config.num_classes * per_class} images in {npz}")
