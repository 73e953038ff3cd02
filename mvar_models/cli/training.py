"""The commands `mvar train`, `mvar finetune` and `mvar train-vqvae`."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable
from typing import Any, TypeVar

import click

from mvar_models.cli.common import flag_of, settings_options, step_progress
from mvar_models.data.class_names import counted
from mvar_models.devices import default_device
from mvar_models.distributed import COLLECTIVE_TIMEOUT
from mvar_models.training import runs
from mvar_models.training.build import describe_vqvae
from mvar_models.training.settings import (
    RunSettings,
    ScorerSettings,
    TransformerSettings,
    VQVAESettings,
)

F = TypeVar("F", bound=Callable[..., Any])

# As released; training from scratch took 300.
_FINETUNING_EPOCHS = 80.0
_SHAPE = "the checkpoint has its own shape"
_SMALL = "a VQVAE and its gradients fit on one device"
# Settings without an option, each with the reason, by command.
WITHOUT = {
    "train": {"init": "mvar finetune starts from a checkpoint"},
    "finetune": {"depth": _SHAPE, "width": _SHAPE, "num_heads": _SHAPE, "shared_adaln": _SHAPE},
    "train_scorer": dict.fromkeys(
        (
            "fsdp",
            "activation_checkpointing",
            "sample_every",
            "evaluate_every",
            "evaluate_features",
            "evaluate_weights",
            "evaluate_images",
        ),
        "a scorer is small and makes no images",
    ),
    "train_vqvae": {"fsdp": _SMALL, "activation_checkpointing": _SMALL},
}
# Options of train-vqvae that contradict --model, whose shape is kept.
_VQVAE_SHAPE = (
    "resolution",
    "vocab_size",
    "z_channels",
    "channels",
    "blocks_per_level",
    "channel_multipliers",
    "sides",
)


def _run_options(kind: type[RunSettings], *, without: dict[str, str]) -> Callable[[F], F]:
    """Return a decorator that adds the options of a training command.

    Args:
        kind: The settings class, which gives an option per field.
        without: Fields that this command has no option for, each with the reason.
    """

    def decorate(command: F) -> F:
        command = settings_options(kind, without=without)(command)
        command = click.option(
            "--epochs", type=float, default=None, help="Passes over the training images, instead of --steps."
        )(command)
        command = click.option(
            "--collective-timeout",
            type=float,
            default=COLLECTIVE_TIMEOUT,
            help="With several processes: seconds without a sign of another after which the run ends.",
        )(command)
        return click.option(
            "--resume",
            default=None,
            metavar="RUN",
            help="Continue this run, with more --steps if given; other options are --device and "
            "--collective-timeout.",
        )(command)

    return decorate


def _start(options: dict[str, Any], kind: type[RunSettings], make: Callable[..., runs.Run]) -> runs.Run:
    """Return a new run with the given options, or the one to resume.

    Args:
        options: Values of the command's options, None where an option was not given.
        kind: The settings class that the options belong to.
        make: Starts or resumes a run.

    Raises:
        click.UsageError: the options contradict each other, or one is missing.
    """
    given = {name: value for name, value in options.items() if value is not None}
    resume = given.pop("resume", None)
    machine = {name: given.pop(name) for name in ("device", "collective_timeout") if name in given}
    machine.setdefault("device", default_device())
    if resume is not None:
        extra = ", ".join(flag_of(name, kind) for name in given if name != "steps")
        if extra:
            raise click.UsageError(f"--resume continues a run with its own settings; leave out {extra}")
        return make(resume=resume, **machine, **given)
    for name in ("data", "out"):
        if name not in given:
            raise click.UsageError(f"--{name} is missing")
    if ("steps" in given) == ("epochs" in given):
        raise click.UsageError("give one of --steps and --epochs")
    return make(**machine, **given)


def _show_data(run: runs.Run[Any]) -> None:
    """Print what a run trains on, and that it is finished if it is."""
    click.echo(f"{len(run.data):,} images in {counted(run.data.class_names)}")
    if run.folder.last_step() >= run.settings.steps:
        click.echo(f"{run.folder.path} is finished: it has its {run.settings.steps:,} steps")


def _show_next(run: runs.Run[Any], use: str) -> None:
    """Print how to use the model of a finished run, and how to train it further."""
    command, path = click.get_current_context().info_name, shlex.quote(str(run.folder.path))
    click.echo(f"next: mvar {use} {path}, or mvar {command} --resume {path} --steps {2 * run.settings.steps}")


def _show_distance(results: dict[str, Any], settings: RunSettings) -> None:
    """Print the last Frechet distance, if the run measured one."""
    if "fd" in results:
        click.echo(
            f"Frechet distance {results['fd']:.2f} of {settings.evaluate_features} features to at most "
            f"{settings.evaluate_images:,} held-out images"
        )


def _train_transformer(options: dict[str, Any]) -> None:
    """Start or resume the run that the options describe, train it to its end and print the result."""
    run = _start(options, TransformerSettings, runs.start_transformer_run)
    settings = run.settings
    if run.processes.first:
        _show_data(run)
        click.echo(
            f"{settings.steps:,} steps of {settings.batch_size} images on {settings.device}, "
            f"peak learning rate {settings.lr:.3g} ..."
        )
    with step_progress(settings.steps, run.folder.last_step()) as report:
        results = runs.train_transformer(run, report)
    if run.processes.first:
        _show_distance(results, settings)
        nats = results["val_loss"]
        click.echo(
            f"held-out cross-entropy {nats:.4f} nats ({nats / math.log(2):.3f} bits) per code; "
            f"model in {run.folder.model}"
        )
        _show_next(run, "sample --model")


@click.command()
@_run_options(TransformerSettings, without=WITHOUT["train"])
def train(**options: Any) -> None:
    """Train a VAR or an MVAR from scratch.

    On several devices or machines: torchrun --nproc-per-node 8 -m mvar_models train ...; --batch-size stays
    the batch of all processes together.
    """
    _train_transformer(options)


@click.command()
@_run_options(TransformerSettings, without=WITHOUT["finetune"])
def finetune(**options: Any) -> None:
    """Fine-tune a VAR into an MVAR, or an MVAR further; 80 epochs unless --steps or --epochs is given.

    On several devices or machines: torchrun --nproc-per-node 8 -m mvar_models finetune ...; --batch-size
    stays the batch of all processes together.
    """
    if not options["resume"]:
        if not options["init"]:
            raise click.UsageError("--model is missing: what should be fine-tuned?")
        if options["steps"] is None and options["epochs"] is None:
            options["epochs"] = _FINETUNING_EPOCHS
    _train_transformer(options)


@click.command()
@click.option(
    "--resolution",
    type=int,
    default=None,
    help="A small shape for 32, 64 or 128 px, or the released one for 256, 512 or 1024 px. Default: one for "
    "digits at 32 px.",
)
@_run_options(VQVAESettings, without=WITHOUT["train_vqvae"])
def train_vqvae(**options: Any) -> None:
    """Train a multi-scale VQVAE on your own images."""
    shape = [name for name in _VQVAE_SHAPE if options["init"] and options[name] is not None]
    if shape:
        flags = ", ".join(flag_of(name, VQVAESettings) for name in shape)
        raise click.UsageError(f"--model has its own shape; leave out {flags}")
    run = _start(options, VQVAESettings, runs.start_vqvae_run)
    assert isinstance(run.settings, VQVAESettings)
    if run.processes.first:
        _show_data(run)
        click.echo(describe_vqvae(run.settings))
    with step_progress(run.settings.steps, run.folder.last_step()) as report:
        results = runs.train_vqvae(run, report)
    if not run.processes.first:
        return
    if results["unreadable_pictures"]:
        click.echo(
            f"{results['unreadable_pictures']} images could not be read; "
            "other images of their classes took their places"
        )
    shares = ", ".join(f"{share:.1%}" for share in results["codes_used_per_scale"])
    _show_distance(results, run.settings)
    click.echo(f"codes in use at each scale: {shares}")
    click.echo(
        f"held-out PSNR {results['val_psnr']:.2f} dB, codes in use {results['codes_used']:.0%}; "
        f"model in {run.folder.model}"
    )
    _show_next(run, f"train --data {shlex.quote(run.settings.data)} --vqvae")


@click.command()
@_run_options(ScorerSettings, without=WITHOUT["train_scorer"])
def train_scorer(**options: Any) -> None:
    """Train a scorer for a model's samples (LSRS): which of several candidates looks most like an image.

    The model samples --per-class images of every class first. `mvar sample --scorer OUT` then uses it.
    """
    if not options["resume"] and not options["model"]:
        raise click.UsageError("--model is missing: whose samples should be scored?")
    run = _start(options, ScorerSettings, runs.start_scorer_run)
    with step_progress(run.settings.steps, run.folder.last_step()) as report:
        results = runs.train_scorer(run, report)
    shares = ", ".join(f"{share:.2f}" for share in results["val_accuracy_per_scale"])
    path, model = run.folder.path, run.settings.model
    click.echo(f"held-out pairs in order at each scale: {shares}; scorer in {path}")
    shown = f"{shlex.quote(model)} --scorer {shlex.quote(str(path))}"
    click.echo(f"next: mvar sample --model {shown}, which takes the best of the run")
