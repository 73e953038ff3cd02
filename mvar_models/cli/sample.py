"""The command `mvar sample`: images as PNGs with a record, or in the one file that FID programs read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from mvar_models.cli.common import count_progress
from mvar_models.cli.drawing_options import checkpoint_options, filled, filter_options, seed_option
from mvar_models.cli.samples_folder import RECORD, Sampling, check_again, read_samples, write_samples
from mvar_models.distributed import Processes
from mvar_models.evaluation.npz import write_npz
from mvar_models.pipeline import Pipeline
from mvar_models.sampling.guidance import RELEASED_SCHEDULE
from mvar_models.sampling.preset import read_preset

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
@click.option(
    "--more-smooth", is_flag=True, help="Same as --sampler smooth: nicer images, but not for metrics."
)
@click.option("--batch-size", default=32, type=click.IntRange(min=1), help="Images drawn at a time.")
@click.option(
    "--per-class", type=click.IntRange(min=1), default=None, help="With --npz: images of every class."
)
@click.option(
    "--npz",
    type=click.Path(path_type=Path, dir_okay=False),
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
        sampling = read_samples(again)
        if _is_given(context, "batch_size"):
            sampling = replace(sampling, batch_size=batch_size)
        pipeline = _pipeline(sampling, place, compiled)
        check_again(sampling, pipeline, again)
        # A record without a schedule is of the released one, whatever the checkpoint has today.
        schedule = {"guidance_schedule": sampling.options.get("guidance_schedule", RELEASED_SCHEDULE)}
        options = {**sampling.options, **filled(schedule, pipeline.model.config)}
        _write_folder(pipeline, replace(sampling, options=options), out, columns=8)
        return
    if given["model"] is None:
        raise click.UsageError("--model is missing: what should draw?")
    if (per_class is None) != (npz is None):
        raise click.UsageError("--per-class and --npz go together")
    if npz is not None and labels is not None:
        raise click.UsageError("--npz takes every class; leave out --labels")
    checkpoint = {name: given.pop(name) for name in ("model", "arch", "vqvae", "dtype")}
    settings = {} if preset is None else read_preset(preset).to_dict()
    pipeline = _pipeline(Sampling(**checkpoint), place, compiled)
    config = pipeline.model.config
    # Records and files made without --sampler stay as they were before there was one.
    sampler = given.pop("sampler")
    options = filled(given, config, settings)
    if sampler is not None:
        options["sampler"] = sampler
    if npz is not None and per_class is not None:
        options.update(seed=seed, batch_size=batch_size, checkpoint=checkpoint)
        _write_npz(pipeline, npz, per_class, processes, **options)
        return
    chosen = [part.strip() for part in labels.split(",")] if labels else default_labels(config.num_classes)
    each = [number for number in map(pipeline.label_of, chosen) for _ in range(n)]
    seeds = list(range(seed, seed + len(each)))
    sampling = Sampling(**checkpoint, options=options, labels=each, seeds=seeds, batch_size=batch_size)
    _write_folder(pipeline, sampling, out, columns=n)


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


def _pipeline(sampling: Sampling, device: str, compiled: bool) -> Pipeline:
    pipeline = sampling.pipeline(device)
    return pipeline.compile() if compiled else pipeline


def _write_folder(pipeline: Pipeline, sampling: Sampling, out: Path, columns: int) -> None:
    total = write_samples(pipeline, sampling, out, columns)
    click.echo(f"{total} images, grid.png and {RECORD} in {out}")


def _write_npz(pipeline: Pipeline, npz: Path, per_class: int, processes: Processes, **options: Any) -> None:
    with count_progress("batch", shown=processes.first) as report:
        complete = write_npz(
            pipeline, npz, per_class=per_class, processes=processes, report=report, **options
        )
    if complete:
        click.echo(f"{pipeline.model.config.num_classes * per_class} images in {npz}")
    else:
        click.echo(
            f"process {processes.rank} is done; the file appears when all {processes.world_size} are, "
            "or when the command is run again"
        )
