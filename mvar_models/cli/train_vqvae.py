"""The command `mvar train-vqvae`."""

from __future__ import annotations

from typing import Any

import click

from mvar_models.cli.common import step_progress
from mvar_models.cli.options import flag_of
from mvar_models.cli.training import run_options, show_distance, start
from mvar_models.training import runs
from mvar_models.training.settings import VQVAESettings

_SMALL = "a VQVAE and its gradients fit on one device"
WITHOUT = {"fsdp": _SMALL, "activation_checkpointing": _SMALL}

# Options that contradict --model, whose shape is kept.
_SHAPE = (
    "resolution",
    "vocab_size",
    "z_channels",
    "channels",
    "blocks_per_level",
    "channel_multipliers",
    "sides",
)


@click.command()
@click.option(
    "--resolution",
    type=int,
    default=None,
    help="The released shape for 256, 512 or 1024 px. Default: a small one for 32 px.",
)
@run_options(VQVAESettings, without=WITHOUT)
def train_vqvae(**options: Any) -> None:
    """Train a multi-scale VQVAE on your own images."""
    shape = [name for name in _SHAPE if options["init"] and options[name] is not None]
    if shape:
        flags = ", ".join(flag_of(name, VQVAESettings) for name in shape)
        raise click.UsageError(f"--model has its own shape; leave out {flags}")
    run = start(options, VQVAESettings, runs.start_vqvae_run)
    assert isinstance(run.settings, VQVAESettings)
    if run.processes.first:
        click.echo(runs.describe_vqvae(run.settings))
    with step_progress(run.settings.steps, shown=run.processes.first) as report:
        results = runs.train_vqvae(run, report)
    if not run.processes.first:
        return
    if results["unreadable_pictures"]:
        click.echo(
            f"{results['unreadable_pictures']} images could not be read; "
            "other images of their classes took their places"
        )
    shares = ", ".join(f"{share:.1%}" for share in results["codes_used_per_scale"])
    show_distance(results, run.settings)
    click.echo(f"codes in use at each scale: {shares}")
    click.echo(
        f"held-out PSNR {results['val_psnr']:.2f} dB, codes in use {results['codes_used']:.0%}; "
        f"model in {run.folder.model}"
    )
