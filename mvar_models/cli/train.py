"""The commands that train: `mvar train`, `finetune`, `train-vqvae`. Defaults live in the runs' dataclasses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import click

from mvar_models.cli.common import clear_errors
from mvar_models.cli.tokenize import tokenize
from mvar_models.devices import default_device

# Of the released fine-tuning; from scratch it was 300.
_FINETUNE_EPOCHS = 80.0


def _run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options of every kind of training. Defaults live in the run's dataclass, so that only what was given is passed on."""
    options = [
        click.option(
            "--data",
            default=None,
            help="'digits', a folder of pictures or codes, a .parquet file, or org/name of a Hugging Face dataset.",
        ),
        click.option("--out", default=None, help="Run folder to make."),
        click.option(
            "--resume",
            default=None,
            metavar="RUN",
            help="Go on with this run; takes no other option but --device.",
        ),
        click.option("--steps", type=int, default=None, help="Optimizer steps."),
        click.option(
            "--epochs",
            type=float,
            default=None,
            help="Instead of --steps: passes over the training pictures.",
        ),
        click.option(
            "--batch-size", type=int, default=None, help="Pictures a step, over all processes. Default: 32."
        ),
        click.option(
            "--lr",
            type=float,
            default=None,
            help="Peak learning rate. Default: 1e-4 x batch / 256; of a VQVAE 1e-3.",
        ),
        click.option("--weight-decay", type=float, default=None, help="Default: 0.05; of a VQVAE 0."),
        click.option(
            "--precision",
            type=click.Choice(["fp32", "bf16", "fp16"]),
            default=None,
            help="Of the arithmetic. Default: fp32.",
        ),
        click.option("--seed", type=int, default=None, help="Of everything random. Default: 0."),
        click.option(
            "--accumulate",
            type=int,
            default=None,
            help="Micro-batches of a process, to save memory. Default: 1.",
        ),
        click.option(
            "--ema",
            type=float,
            default=None,
            help="Decay of a moving average of the weights, which is then what is validated and saved.",
        ),
        click.option(
            "--save-every",
            type=int,
            default=None,
            help="Steps between checkpoints. Default: 500; 0 is only at the end.",
        ),
        click.option(
            "--validate-every",
            type=int,
            default=None,
            help="Steps between validations. Default: 500; 0 is only at the end.",
        ),
        click.option(
            "--keep",
            type=int,
            default=None,
            help="Checkpoints kept. Default: 2; the best model is kept beside them.",
        ),
        click.option(
            "--tensorboard/--no-tensorboard", default=None, help="Also write the figures for TensorBoard."
        ),
        click.option("--compile/--no-compile", default=None, help="torch.compile each block."),
        click.option("--device", default=None, help="Default: cuda where there is one."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _transformer_options(command: Callable[..., None]) -> Callable[..., None]:
    options = [
        click.option(
            "--vqvae",
            default=None,
            help="Name or path of the VQVAE. Default: the checkpoint's; vae-digits for digits.",
        ),
        click.option(
            "--kernel-size",
            type=int,
            default=None,
            help="Window of MVAR's local scales. Default: 7, or the checkpoint's.",
        ),
        click.option(
            "--dense-scales",
            type=int,
            default=None,
            help="Leading scales without windows. Default: of side 10 or less.",
        ),
        click.option(
            "--copies",
            type=int,
            default=None,
            help="Cached variants of each picture. Default: 2, it and its mirror; 1 for digits.",
        ),
        click.option(
            "--label-drop", type=float, default=None, help="Share of labels made unconditional. Default: 0.1."
        ),
        click.option(
            "--drop-path",
            type=float,
            default=None,
            help="Stochastic depth at the last block. Default: 0.1 depth / 24.",
        ),
        click.option("--label-smoothing", type=float, default=None, help="Default: 0."),
        click.option(
            "--schedule",
            type=click.Choice(["packed", "alternating"]),
            default=None,
            help="All scales a step, or few as released. Default: packed.",
        ),
        click.option(
            "--sample-every",
            type=int,
            default=None,
            help="Steps between grids of pictures drawn; 0 is only at the end. Default: never.",
        ),
        click.option(
            "--activation-checkpointing/--no-activation-checkpointing",
            default=None,
            help="Run blocks again in backward: less memory.",
        ),
        click.option(
            "--fsdp/--no-fsdp", default=None, help="Shard weights and optimizer over the processes."
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.option("--arch", type=click.Choice(["var", "mvar"]), default=None, help="Default: mvar.")
@click.option("--depth", type=int, default=None, help="Blocks. Default: 16.")
@click.option("--width", type=int, default=None, help="Default: 64 x depth.")
@click.option("--num-heads", type=int, default=None, help="Default: depth.")
@click.option("--shared-adaln/--no-shared-adaln", default=None, help="One AdaLN linear for all blocks.")
@_transformer_options
@_run_options
@clear_errors
def train(**options: Any) -> None:
    """Train a VAR or an MVAR from nothing.

    On several devices or machines: torchrun --nproc-per-node 8 -m mvar_models train ...; the batch stays what --batch-size says.
    """
    _train_transformer(options)


@click.command()
@click.option(
    "--model",
    "init",
    default=None,
    help="VAR to turn into an MVAR, or an MVAR to go on with: zoo name, folder, file or Hub id.",
)
@click.option(
    "--arch",
    type=click.Choice(["var", "mvar"]),
    default=None,
    help="What to end with, mvar; var trains a VAR further as it is.",
)
@_transformer_options
@_run_options
@clear_errors
def finetune(**options: Any) -> None:
    """Fine-tune a VAR into an MVAR, or an MVAR further; 80 epochs unless --steps or --epochs says otherwise.

    On several devices or machines: torchrun --nproc-per-node 8 -m mvar_models finetune ...; the batch stays what --batch-size says.
    """
    if not options["resume"] and not options["init"]:
        raise click.UsageError("--model is missing: what should be fine-tuned?")
    if not options["resume"]:
        options["arch"] = options["arch"] or "mvar"
        if options["steps"] is None and options["epochs"] is None:
            options["epochs"] = _FINETUNE_EPOCHS
    _train_transformer(options)


@click.command("train-vqvae")
@click.option(
    "--model",
    "init",
    default=None,
    help="VQVAE to go on with, whose shape is kept: zoo name, folder, file or Hub id.",
)
@click.option(
    "--resolution",
    type=int,
    default=None,
    help="The released shape for 256, 512 or 1024 px. Default: a small one for 32 px.",
)
@click.option("--vocab-size", type=int, default=None, help="Codes. Default: 256.")
@click.option("--z-channels", type=int, default=None, help="Length of a code. Default: 16.")
@click.option("--channels", type=int, default=None, help="Width of the finest level. Default: 32.")
@click.option("--blocks-per-level", type=int, default=None, help="Default: 1.")
@click.option(
    "--channel-multipliers",
    default=None,
    help="Width of each level over --channels, finest first. Default: 1,1,1.",
)
@click.option("--sides", default=None, help="Grid side of each scale, coarse to fine. Default: 1,2,3,4,6,8.")
@click.option(
    "--commitment",
    type=float,
    default=None,
    help="Weight of the encoder's pull towards its codes. Default: 0.25.",
)
@click.option(
    "--perceptual",
    type=float,
    default=None,
    help='Weight of LPIPS; needs the extra "perceptual". Default: 0, without.',
)
@click.option(
    "--adversarial",
    type=float,
    default=None,
    help="Weight of a patch discriminator's loss. Default: 0, without.",
)
@click.option(
    "--adversarial-start",
    type=int,
    default=None,
    help="First step of the discriminator. Default: the middle of the run.",
)
@click.option(
    "--sample-every",
    type=int,
    default=None,
    help="Steps between pictures of reconstructions. Default: 500; 0 is only at the end.",
)
@_run_options
@clear_errors
def train_vqvae(channel_multipliers: str | None, sides: str | None, **options: Any) -> None:
    """Train a multi-scale VQVAE on your own pictures."""
    from mvar_models.training import runs as commands

    options["channel_multipliers"] = _numbers(channel_multipliers, "--channel-multipliers")
    options["sides"] = _numbers(sides, "--sides")
    shape = [name for name in _VQVAE_SHAPE if options["init"] and options[name] is not None]
    if shape:
        raise click.UsageError(
            f"--model has its own shape; leave out {', '.join(_flag(name) for name in shape)}"
        )
    run = _resolve(options, commands.start_vqvae_run)
    if run.processes.first:
        click.echo(commands.describe_vqvae(run.settings))
    with _progress_bar(run) as report:
        results = commands.train_vqvae(run, report)
    if not run.processes.first:
        return
    if results["unreadable_pictures"]:
        click.echo(
            f"{results['unreadable_pictures']} pictures could not be read; others of their classes stood in for them"
        )
    click.echo(
        f"codes in use at each scale: {', '.join(f'{share:.1%}' for share in results['codes_used_per_scale'])}"
    )
    click.echo(
        f"held-out PSNR {results['val_psnr']:.2f} dB, codes in use {results['codes_used']:.0%}; model in {run.folder.model}"
    )


def _train_transformer(options: dict[str, Any]) -> None:
    from mvar_models.training import runs as commands

    run = _resolve(options, commands.start_transformer_run)
    if run.processes.first:
        settings = run.settings
        click.echo(
            f"{settings.steps:,} steps of {settings.batch_size} pictures on {settings.device}, peak learning rate {settings.lr:.3g} ..."
        )
    with _progress_bar(run) as report:
        results = commands.train_transformer(run, report)
    bits = results["val_loss"] / math.log(2)
    if run.processes.first:
        click.echo(
            f"held-out cross-entropy {results['val_loss']:.4f} nats ({bits:.3f} bits) a code; model in {run.folder.model}"
        )


def _resolve(options: dict[str, Any], make: Callable[..., Any]) -> Any:
    """A run from what was given: a new one, or the one to resume."""
    given = {name: value for name, value in options.items() if value is not None}
    resume = given.pop("resume", None)
    device = given.pop("device", None) or default_device()
    if resume is not None:
        if given:
            raise click.UsageError(
                f"--resume goes on with a run as it was started; leave out {', '.join(_flag(name) for name in given)}"
            )
        return make(resume=resume, device=device)
    for name in ("data", "out"):
        if name not in given:
            raise click.UsageError(f"--{name} is missing")
    if ("steps" in given) == ("epochs" in given):
        raise click.UsageError("give one of --steps and --epochs")
    return make(device=device, **given)


_VQVAE_SHAPE = (
    "resolution",
    "vocab_size",
    "z_channels",
    "channels",
    "blocks_per_level",
    "channel_multipliers",
    "sides",
)


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
    """A tqdm bar over optimizer steps from the first one on, fed with a step's figures; the first process shows it. Log lines go above it."""

    def __init__(self, run: Any) -> None:
        from mvar_models.optional import require

        self.tqdm = require("tqdm", "train").tqdm
        self.options = {
            "total": run.settings.steps,
            "unit": "step",
            "dynamic_ncols": True,
            "disable": not run.processes.first,
        }
        self.bar: Any = None
        self.logging = require("tqdm.contrib.logging", "train").logging_redirect_tqdm()

    def __enter__(self) -> Callable[[dict[str, Any]], None]:
        self.logging.__enter__()
        return self._report

    def _report(self, values: dict[str, Any]) -> None:
        if self.bar is None:
            # From the end of the first step on, so that rate and time left are right, a resumed run's too.
            self.bar = self.tqdm(initial=values["step"], **self.options)
        self.bar.update(values["step"] - self.bar.n)
        shown = {title: f"{values[name]:.4g}" for name, title in _SHOWN.items() if name in values}
        self.bar.set_postfix(shown, refresh=False)

    def __exit__(self, *exc: Any) -> None:
        if self.bar is not None:
            self.bar.close()
        self.logging.__exit__(*exc)


_SHOWN = {
    "loss": "loss",
    "val_loss": "val_loss",
    "val_psnr": "val_psnr",
    "skipped_steps": "skipped",
    "images_per_second": "images/s",
    "memory_gb": "GB",
}

COMMANDS = (train, finetune, train_vqvae, tokenize)
