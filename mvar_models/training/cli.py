"""The commands that train: `mvar train`, `finetune`, `train-vqvae`. Defaults live in the runs' dataclasses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import click

from mvar_models.cli_support import clear_errors, default_device
from mvar_models.training.tokenize_cli import tokenize


def _run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options of every kind of training. Defaults live in the run's dataclass, so that only what was given is passed on."""
    options = [
        click.option("--data", default=None, help="'digits', a folder of pictures or codes, a .parquet file, or org/name of a Hugging Face dataset."),
        click.option("--out", default=None, help="Run folder to make."),
        click.option("--resume", default=None, metavar="RUN", help="Go on with this run; takes no other option."),
        click.option("--steps", type=int, default=None, help="Optimizer steps."),
        click.option("--epochs", type=float, default=None, help="Instead of --steps: passes over the training pictures."),
        click.option("--batch-size", type=int, default=None, help="Pictures a step, over all processes."),
        click.option("--lr", type=float, default=None, help="Peak learning rate."),
        click.option("--weight-decay", type=float, default=None),
        click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), default=None),
        click.option("--seed", type=int, default=None),
        click.option("--save-every", type=int, default=None, help="Steps between checkpoints; 0 is only at the end."),
        click.option("--validate-every", type=int, default=None, help="Steps between validations; 0 is only at the end."),
        click.option("--device", default=None, help="Default: cuda where there is one."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _transformer_options(command: Callable[..., None]) -> Callable[..., None]:
    options = [
        click.option("--vqvae", default=None, help="Zoo name or folder of the VQVAE. Default: vae-digits for digits, else vae-ch160v4096z32."),
        click.option("--kernel-size", type=int, default=None, help="Window of MVAR's local scales."),
        click.option("--dense-scales", type=int, default=None, help="Leading scales that attend to the whole scale."),
        click.option("--copies", type=int, default=None, help="Cached variants of each picture."),
        click.option("--label-drop", type=float, default=None, help="Share of labels made unconditional."),
        click.option("--drop-path", type=float, default=None, help="Stochastic depth at the last block. Default: 0.1 depth / 24."),
        click.option("--label-smoothing", type=float, default=None),
        click.option("--schedule", type=click.Choice(["packed", "alternating"]), default=None),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.option("--arch", type=click.Choice(["var", "mvar"]), default=None)
@click.option("--depth", type=int, default=None, help="Blocks.")
@click.option("--width", type=int, default=None, help="Default: 64 x depth.")
@click.option("--num-heads", type=int, default=None, help="Default: depth.")
@click.option("--shared-adaln/--no-shared-adaln", default=None, help="One AdaLN linear for all blocks.")
@_transformer_options
@_run_options
@clear_errors
def train(**options: Any) -> None:
    """Train a VAR or an MVAR from nothing."""
    _train_transformer(options)


@click.command()
@click.option("--model", "init", default=None, help="VAR to turn into an MVAR, or an MVAR to go on with: zoo name, folder, file or Hub id.")
@_transformer_options
@_run_options
@clear_errors
def finetune(**options: Any) -> None:
    """Fine-tune a VAR into an MVAR, or an MVAR further."""
    if not options["resume"] and not options["init"]:
        raise click.UsageError("--model is missing: what should be fine-tuned?")
    _train_transformer({**options, "arch": "mvar" if not options["resume"] else None})


@click.command("train-vqvae")
@click.option("--model", "init", default=None, help="VQVAE to go on with, whose shape is kept: zoo name, folder, file or Hub id.")
@click.option("--vocab-size", type=int, default=None, help="Codes.")
@click.option("--z-channels", type=int, default=None, help="Length of a code.")
@click.option("--channels", type=int, default=None, help="Width of the finest level.")
@click.option("--blocks-per-level", type=int, default=None)
@click.option("--channel-multipliers", default=None, help="Width of each level over --channels, finest first: 1,1,1.")
@click.option("--sides", default=None, help="Grid side of each scale, coarse to fine: 1,2,3,4,6,8.")
@click.option("--commitment", type=float, default=None, help="Weight of the encoder's pull towards its codes, 0.25.")
@click.option("--perceptual", type=float, default=None, help="Weight of LPIPS; needs pip install 'mvar[perceptual]'. Default: 0, without.")
@click.option("--adversarial", type=float, default=None, help="Weight of a patch discriminator's loss. Default: 0, without.")
@click.option("--adversarial-start", type=int, default=None, help="First step of the discriminator. Default: the middle of the run.")
@click.option("--sample-every", type=int, default=None, help="Steps between pictures of reconstructions, 500; 0 is only at the end.")
@_run_options
@clear_errors
def train_vqvae(channel_multipliers: str | None, sides: str | None, **options: Any) -> None:
    """Train a multi-scale VQVAE on your own pictures."""
    from mvar_models.training import commands

    options["channel_multipliers"] = _numbers(channel_multipliers, "--channel-multipliers")
    options["sides"] = _numbers(sides, "--sides")
    shape = [name for name in _VQVAE_SHAPE if options["init"] and options[name] is not None]
    if shape:
        raise click.UsageError(f"--model has its own shape; leave out {', '.join(_flag(name) for name in shape)}")
    run = _resolve(options, commands.vqvae_run)
    with _progress_bar(run.config.steps) as report:
        results = commands.train_vqvae(run, report)
    click.echo(f"held-out PSNR {results['val_psnr']:.2f} dB, codes in use {results['codes_used']:.0%}; model in {run.folder.model}")


def _train_transformer(options: dict[str, Any]) -> None:
    from mvar_models.training import commands

    run = _resolve(options, commands.transformer_run)
    click.echo("making codes of the pictures ...")
    with _progress_bar(run.config.steps) as report:
        results = commands.train_transformer(run, report)
    bits = results["val_loss"] / math.log(2)
    click.echo(f"held-out cross-entropy {results['val_loss']:.4f} nats ({bits:.3f} bits) a code; model in {run.folder.model}")


def _resolve(options: dict[str, Any], make: Callable[..., Any]) -> Any:
    """A run from what was given: a new one, or the one to resume."""
    given = {name: value for name, value in options.items() if value is not None}
    resume = given.pop("resume", None)
    if resume is not None:
        if given:
            raise click.UsageError(f"--resume goes on with a run as it was started; leave out {', '.join(_flag(name) for name in given)}")
        return make(resume=resume)
    for name in ("data", "out"):
        if name not in given:
            raise click.UsageError(f"--{name} is missing")
    if ("steps" in given) == ("epochs" in given):
        raise click.UsageError("give one of --steps and --epochs")
    given.setdefault("device", default_device())
    return make(**given)


_VQVAE_SHAPE = ("vocab_size", "z_channels", "channels", "blocks_per_level", "channel_multipliers", "sides")


def _flag(name: str) -> str:
    return "--model" if name == "init" else "--" + name.replace("_", "-")


def _numbers(text: str | None, flag: str) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.UsageError(f"{flag} must be whole numbers separated by commas, got {text!r}") from None


class _progress_bar:
    """A tqdm bar over optimizer steps, fed with a step's figures."""

    def __init__(self, steps: int) -> None:
        from mvar_models.extras import require

        self.bar = require("tqdm", "train").tqdm(total=steps, unit="step", dynamic_ncols=True)

    def __enter__(self) -> Callable[[dict[str, Any]], None]:
        return self._report

    def _report(self, values: dict[str, Any]) -> None:
        self.bar.update(values["step"] - self.bar.n)
        shown = {name: f"{values[name]:.4g}" for name in ("loss", "val_loss", "val_psnr", "images_per_second") if name in values}
        self.bar.set_postfix(shown, refresh=False)

    def __exit__(self, *exc: object) -> None:
        self.bar.close()


COMMANDS = (train, finetune, train_vqvae, tokenize)
