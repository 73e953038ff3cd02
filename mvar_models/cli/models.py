"""The commands `mvar models` and `mvar export`: list the zoo; write a model for the released programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mvar_models.checkpoints.checkpoint import Checkpoint, open_checkpoint
from mvar_models.checkpoints.locate import FORMS
from mvar_models.checkpoints.zoo import EMBEDDED, Entry, find, imagenet_names, list_models
from mvar_models.cli.common import OutFile
from mvar_models.config import Config, TransformerConfig, VQVAEConfig
from mvar_models.pipeline import model_for, pipeline_for
from mvar_models.registry import ARCHITECTURES, architecture
from mvar_models.sampling.settings import SamplingSettings

_HEADER = (
    f"{'name':20} {'kind':6} {'px':>4} {'parameters':>10} {'FID':>5} {'IS':>6}  "
    f"{'guidance top_k top_p':20}  {'licence':12}  weights"
)


@click.command()
@click.argument("pattern", default="*")
def models(pattern: str) -> None:
    """List the models of the zoo whose names match PATTERN, or describe one, with its preset and classes.

    The one may be of the zoo or any other that --model takes: a Hub id, a model folder, a run folder or a
    file.
    """
    names = list_models(pattern)
    if find(pattern) is not None or not (names or set("*?[") & set(pattern)):
        for line in _description(open_checkpoint(pattern)):
            click.echo(line)
        return
    if not names:
        raise click.UsageError(f"no model matches {pattern!r}; there are {', '.join(list_models())}")
    click.echo(_HEADER)
    for name in names:
        entry = find(name)
        assert entry is not None
        click.echo(_line(name, entry))
    click.echo("FID and IS: as published by the authors for 50,000 images, not measured here.")


def _line(name: str, entry: Entry) -> str:
    fid = f"{entry.scores['FID']:.2f}" if "FID" in entry.scores else "-"
    inception = f"{entry.scores['IS']:.1f}" if "IS" in entry.scores else "-"
    preset = "in its config" if architecture(entry.model_type).is_generator else ""
    if "top_k" in entry.preset:
        preset = "{guidance_scale:8.1f} {top_k:5} {top_p:5.2f}".format(**entry.preset)
    return (
        f"{name:20} {entry.model_type:6} {entry.resolution:4} {entry.parameters:>10} "
        f"{fid:>5} {inception:>6}  {preset:20}  {entry.licence:12}  {entry.repository}/{entry.file}"
    )


def _description(checkpoint: Checkpoint) -> list[str]:
    """Return what a checkpoint is, its preset and its classes, one line each."""
    entry, config = checkpoint.source.entry, _config_of(checkpoint)
    facts = [ARCHITECTURES[config.model_type].title]
    if entry is not None:
        facts += [f"{entry.resolution} px", f"{entry.parameters} parameters", f"licence: {entry.licence}"]
        facts += [
            f"{entry.repository}/{entry.file}",
            *(f"published {k} {v}" for k, v in entry.scores.items()),
        ]
    elif checkpoint.source.repository is None:
        facts += [f"{checkpoint.weights.stat().st_size / 1e6:,.1f} MB", str(checkpoint.weights)]
    lines = [f"{checkpoint}: {', '.join(facts)}"]
    if isinstance(config, VQVAEConfig):
        return [
            *lines,
            f"{len(config.sides)} scales, {config.length} codes of {config.vocab_size}; no classes",
        ]
    assert isinstance(config, TransformerConfig)
    preset = SamplingSettings.of(config).to_dict()
    lines += [f"preset: {', '.join(f'{name} {value}' for name, value in preset.items())}"]
    lines += [f"VQVAE: {config.vqvae or 'in its folder'}"]
    names = config.class_names or ["no name"] * config.num_classes
    return [*lines, f"{len(names)} classes:", *(f"{label:5} {name}" for label, name in enumerate(names))]


def _config_of(checkpoint: Checkpoint) -> Config:
    """Return the configuration; that of a released model without downloading it."""
    entry, kind = checkpoint.source.entry, checkpoint.kind()
    row = ARCHITECTURES[kind] if kind in ARCHITECTURES else checkpoint.architecture()
    if entry is not None and entry.repository != EMBEDDED:
        classes = {"class_names": imagenet_names()} if row.is_generator else {}
        released: Config = row.config_class()(**{**entry.preset, **classes})
        return released
    if checkpoint.config_values is None:
        inferred: Config = row.network_class().from_pretrained(checkpoint).config
        return inferred
    stored: Config = row.config_class().from_dict(checkpoint.config_values, str(checkpoint.config_path))
    return stored


@click.command()
@click.option("--model", required=True, help=f"Model: {FORMS}.")
@click.option("--out", "-o", type=OutFile(".pth", ".pt"), help="The .pth to write.")
@click.option(
    "--onnx", type=click.Path(path_type=Path, file_okay=False), help="The folder of ONNX graphs to write."
)
@click.option(
    "--weights",
    type=click.Choice(["float32", "float16", "int8"]),
    default="float32",
    help="With --onnx: how weights are stored; graphs compute in float32.",
)
@click.option(
    "--arch",
    type=click.Choice(list(ARCHITECTURES)),
    default=None,
    help="Architecture of a released .pth that does not say which it is.",
)
def export(model: str, out: Path | None, onnx: Path | None, weights: str, arch: str | None) -> None:
    """Write a model as a .pth that the released VAR and MVAR programs load strictly, or as ONNX graphs."""
    if (out is None) == (onnx is None):
        raise click.UsageError("give one of --out, for the released programs, and --onnx")
    if onnx is not None:
        from mvar_models.pipeline.onnx import export_onnx

        export_onnx(pipeline_for(model, arch=arch), onnx, weights)
        size = sum(file.stat().st_size for file in onnx.iterdir())
        click.echo(
            f"{size / 1e6:.1f} MB in {onnx}; OnnxPipeline of mvar_models.pipeline.onnx samples from it"
        )
        return
    assert out is not None
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out.parent} is no folder")
    checkpoint = open_checkpoint(model)
    kind = checkpoint.kind(arch)
    if kind in ARCHITECTURES and not ARCHITECTURES[kind].is_generator:
        network: Any = ARCHITECTURES[kind].network_class().from_pretrained(checkpoint)
    else:
        network = model_for(checkpoint, arch)
    click.echo(f"{network.num_parameters():,} parameters in {network.export_official(out)}")
