"""What the commands `train`, `finetune` and `train-vqvae` share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import click

from mvar_models.cli.common import step_progress
from mvar_models.cli.options import flag_of, settings_options
from mvar_models.devices import default_device
from mvar_models.distributed import COLLECTIVE_TIMEOUT
from mvar_models.training import runs
from mvar_models.training.settings import RunSettings, TransformerSettings

F = TypeVar("F", bound=Callable[..., Any])


def run_options(kind: type[RunSettings], *, without: dict[str, str]) -> Callable[[F], F]:
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
            help="Continue this run; --device and --collective-timeout are the only other options it takes.",
        )(command)

    return decorate


def start(options: dict[str, Any], kind: type[RunSettings], make: Callable[..., runs.Run]) -> runs.Run:
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
        if given:
            extra = ", ".join(flag_of(name, kind) for name in given)
            raise click.UsageError(f"--resume continues a run with its own settings; leave out {extra}")
        return make(resume=resume, **machine)
    for name in ("data", "out"):
        if name not in given:
            raise click.UsageError(f"--{name} is missing")
    if ("steps" in given) == ("epochs" in given):
        raise click.UsageError("give one of --steps and --epochs")
    return make(**machine, **given)


def show_distance(results: dict[str, Any], settings: RunSettings) -> None:
    """Print the last Frechet distance, if the run measured one."""
    if "fd" in results:
        click.echo(
            f"Frechet distance {results['fd']:.2f} of {settings.evaluate_features} features to at most "
            f"{settings.evaluate_images:,} held-out images"
        )


def train_transformer(options: dict[str, Any]) -> None:
    """Start or resume the run that the options describe, train it to its end and print the result."""
    run = start(options, TransformerSettings, runs.start_transformer_run)
    settings = run.settings
    if run.processes.first:
        click.echo(
            f"{settings.steps:,} steps of {settings.batch_size} images on {settings.device}, "
            f"peak learning rate {settings.lr:.3g} ..."
        )
    with step_progress(settings.steps, shown=run.processes.first) as report:
        results = runs.train_transformer(run, report)
    if run.processes.first:
        show_distance(results, settings)
        nats = results["val_loss"]
        click.echo(
            f"held-out cross-entropy {nats:.4f} nats ({nats / math.log(2):.3f} bits) per code; "
            f"model in {run.folder.model}"
        )
