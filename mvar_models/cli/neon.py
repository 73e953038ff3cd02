"""The command `mvar neon`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mvar_models.checkpoints.checkpoint import open_checkpoint
from mvar_models.checkpoints.locate import FORMS
from mvar_models.cli.common import CommaList, flag_of, settings_options, step_progress
from mvar_models.cli.drawing_options import filter_options
from mvar_models.devices import default_device
from mvar_models.distributed import Processes
from mvar_models.pipeline import pipeline_for
from mvar_models.registry import generator_names
from mvar_models.sampling.settings import SamplingSettings
from mvar_models.training.neon import SAMPLES, extrapolated, train_on_samples
from mvar_models.training.run_folder import RunFolder
from mvar_models.training.settings import TransformerSettings

# Settings of the training that the command takes; a run of a moment needs no others.
_TRAINING = (
    "steps",
    "batch_size",
    "lr",
    "precision",
    "seed",
    "accumulate",
    "activation_checkpointing",
    "accept_psnr",
)
_OTHERS = {*TransformerSettings.__dataclass_fields__} - {*_TRAINING}
_SAMPLING = tuple(SamplingSettings.__dataclass_fields__)


@click.command()
@click.option("--model", default=None, help=f"Model: {FORMS}.")
@click.option("--per-class", type=click.IntRange(min=1), default=None, help="Images of every class.")
@click.option(
    "--samples",
    type=click.Choice(SAMPLES),
    default=None,
    help="Train on decoded images, encoded again, or on the codes as sampled. Default: images, as released.",
)
@click.option("--data", default=None, help="Real images in place of samples: the control.")
@filter_options
@settings_options(TransformerSettings, without=_OTHERS)
@click.option(
    "--self",
    "trained",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Run that this command trained before, for other weights.",
)
@click.option("--weight", type=CommaList(float), default="1", help="Values, with commas between.")
@click.option("--arch", type=click.Choice(generator_names()), default=None, help="Of a bare released .pth.")
@click.option("--vqvae", default=None, help=f"VQVAE: {FORMS}. Default: the checkpoint's own.")
@click.option("--device", default=None, help="Default: cuda if available, else cpu.")
@click.option("--out", "-o", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder.")
def neon(
    model: str | None,
    arch: str | None,
    vqvae: str | None,
    preset: Path | None,
    trained: Path | None,
    weight: tuple[float, ...],
    device: str | None,
    out: Path,
    **options: Any,
) -> None:
    """Move a model away from what a short training on its own samples makes of it; no data is needed.

    Writes OUT/weight-W, a model folder, for each weight W: model + W (model - self-trained model). The
    self-trained model stays in OUT/self, so that --self OUT/self takes further weights without training.
    Guidance must usually be higher than before: `mvar sweep` finds it. Under torchrun the processes share the
    work.
    """
    given = {name: value for name, value in options.items() if value is not None}
    place = default_device() if device is None else device
    if trained is not None:
        extra = [f"--{name}" for name, value in (("model", model), ("arch", arch), ("vqvae", vqvae)) if value]
        extra += [flag_of(name, TransformerSettings) for name in given]
        if extra:
            raise click.UsageError(f"--self has its model and training; leave out {', '.join(extra)}")
        run = RunFolder(trained)
        settings = run.read_settings()
        if not isinstance(settings, TransformerSettings) or settings.init is None:
            raise ValueError(f"{trained} did not train a model further, and has none to move")
        model, arch, vqvae = settings.init, settings.arch, settings.vqvae
    elif model is None or not {"per_class", "steps"} <= given.keys():
        raise click.UsageError(
            "give --model, --per-class and --steps to train, or --self to use what was trained"
        )
    checkpoint = open_checkpoint(model)
    pipeline = pipeline_for(checkpoint, arch=arch, vqvae=vqvae, preset=preset, device=place)
    first = Processes.from_environment(device).first
    if trained is None:
        chosen = {name: given.pop(name) for name in _SAMPLING if name in given}
        sampling = SamplingSettings.of(pipeline.model.config, **chosen)
        names = model, str(checkpoint.open_vqvae(vqvae))
        with step_progress(given["steps"]) as report_step:
            run = train_on_samples(
                pipeline, out, names=names, settings=sampling, device=place,
                report_step=report_step, **given,
            )  # fmt: skip
    for each in weight if first else ():
        folder = extrapolated(pipeline, run, each).save_pretrained(out / f"weight-{each:g}")
        click.echo(f"weight {each:g}: {folder}")
