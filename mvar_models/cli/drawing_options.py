"""Options of the commands that sample: which checkpoint, which labels, and how codes are chosen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import click
import torch

from mvar_models.checkpoints.locate import FORMS
from mvar_models.cli.common import settings_options
from mvar_models.devices import default_device
from mvar_models.pipeline import Pipeline, pipeline_for
from mvar_models.records import converted, within
from mvar_models.registry import generator_names
from mvar_models.sampling.labels import split_labels
from mvar_models.sampling.settings import SamplingSettings

F = TypeVar("F", bound=Callable[..., Any])


def seed_option(help: str) -> Callable[[F], F]:
    """Return the option --seed; from 2^63 on, sums of seeds and numbers of images could be too large."""
    kind = Annotated[int, within(0, 2**63 - 1)]

    def check(context: click.Context, option: click.Parameter, value: int) -> int:
        return cast(int, converted(value, kind, "--seed"))

    return click.option("--seed", default=0, help=help, callback=check)


_CHECKPOINT = (
    click.option("--model", default=None, help=f"Model: {FORMS}."),
    click.option("--vqvae", default=None, help=f"VQVAE: {FORMS}. Default: the checkpoint's own."),
    click.option(
        "--arch",
        type=click.Choice(generator_names()),
        default=None,
        help="Architecture of a released .pth that does not say which it is.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(["float32", "bfloat16", "float16"]),
        default="float32",
        help="Type of the model's weights.",
    ),
    click.option("--device", default=None, help="Default: cuda if available, else cpu."),
)
_PRESET = click.option(
    "--preset",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Settings of sampling in a file of mvar sweep. Default: the checkpoint's.",
)
sampling_options = settings_options(SamplingSettings)
accept_psnr_option = click.option(
    "--accept-psnr", is_flag=True, help="Go on where the VQVAE reconstructs the images below 15 dB PSNR."
)


def checkpoint_options(command: F) -> F:
    """Add the options that say which checkpoint is sampled, where and in which type."""
    for option in reversed(_CHECKPOINT):  # the last decorator comes first in the help
        command = option(command)
    return command


def filter_options(command: F) -> F:
    """Add the options that say how codes are chosen, and --preset for all of them."""
    return _PRESET(sampling_options(command))


def chosen_labels(labels: str | None, pipeline: Pipeline) -> list[str] | None:
    """Return the labels that --labels names, or None without it."""
    return None if labels is None else split_labels(labels, pipeline.model.config.class_names or ())


def load_pipeline(
    model: str | None,
    *,
    arch: str | None,
    vqvae: str | None,
    dtype: str,
    device: str | None,
    preset: Path | None = None,
) -> Pipeline:
    """Load the pipeline that the options name."""
    if model is None:
        raise click.UsageError("--model is missing: what should draw?")
    place = default_device() if device is None else device
    weights = getattr(torch, dtype)
    return pipeline_for(model, arch=arch, vqvae=vqvae, preset=preset, device=place, dtype=weights)
