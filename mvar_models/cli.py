"""The `mvar` command (`python -m mvar_models` is the same). Flags are the Python arguments' names."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import click

from mvar_models import __version__
from mvar_models.cli_support import clear_errors, default_device
from mvar_models.training import cli as training_cli


@click.group(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mvar")
def main() -> None:
    """VAR and MVAR: sample, train, fine-tune."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")


@main.command()
@click.argument("pattern", default="*")
def models(pattern: str) -> None:
    """Models of the zoo whose names match PATTERN."""
    from mvar_models.zoo import find, list_models

    click.echo(f"{'name':20} {'kind':6} {'px':>4} {'parameters':>10} {'FID':>5}  {'guidance top_k top_p':20}  {'licence':12}  weights")
    for name in list_models(pattern):
        entry = find(name)
        fid = f"{entry.fid:.2f}" if entry.fid else "-"
        preset = "" if entry.model_type == "vqvae" else "in its config"
        if "top_k" in entry.preset:
            preset = "{guidance_scale:8.1f} {top_k:5} {top_p:5.2f}".format(**entry.preset)
        weights = f"{entry.repository}/{entry.file}"
        click.echo(f"{name:20} {entry.model_type:6} {entry.resolution:4} {entry.parameters:>10} {fid:>5}  {preset:20}  {entry.licence:12}  {weights}")
    click.echo("FID: as published by the authors for 50,000 pictures, not measured here.")


@main.command()
@click.option("--model", required=True, help="Zoo name, folder, file or Hub id.")
@click.option("--labels", default=None, help="Class numbers or names, separated by commas. Default: every class.")
@click.option("--n", default=8, type=click.IntRange(min=1), help="Pictures per label.")
@click.option("--seed", default=0)
@click.option("--guidance-scale", type=float, default=None, help="Default: the checkpoint's.")
@click.option("--top-k", type=int, default=None, help="Default: the checkpoint's; 0 is off.")
@click.option("--top-p", type=float, default=None, help="Default: the checkpoint's; 0 is off.")
@click.option("--more-smooth", is_flag=True, help="Mix codes: nicer pictures, not for metrics.")
@click.option("--batch-size", default=32, type=click.IntRange(min=1))
@click.option("--device", default=None, help="Default: cuda where there is one.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", help="Of the weights.")
@click.option("--arch", type=click.Choice(["var", "mvar"]), default=None, help="For a released .pth that does not say which it is.")
@click.option("--vqvae", default=None, help="Zoo name, folder or file of the VQVAE. Default: the checkpoint's own.")
@click.option("--per-class", type=click.IntRange(min=1), default=None, help="With --npz: pictures of every class.")
@click.option("--npz", type=click.Path(path_type=Path, dir_okay=False), default=None, help="Write one file for FID programs instead of PNGs.")
@click.option("--out", "-o", default="samples", type=click.Path(path_type=Path, file_okay=False))
@clear_errors
def sample(
    model: str,
    labels: str | None,
    n: int,
    seed: int,
    device: str | None,
    dtype: str,
    arch: str | None,
    vqvae: str | None,
    per_class: int | None,
    npz: Path | None,
    out: Path,
    **options: Any,
) -> None:
    """Draw pictures: one PNG each, a grid, and a JSON that says how to draw them again.

    With --per-class 50 --npz FILE: that many of every class in one .npz, the file FID programs read. It goes on where a stopped run was, and
    under torchrun the processes share the work; the pictures are the same.
    """
    import torch

    from mvar_models.checkpoints import write_text
    from mvar_models.grid import grid
    from mvar_models.pipeline import pipeline_for

    if (per_class is None) != (npz is None):
        raise click.UsageError("--per-class and --npz go together")
    if npz is not None and labels is not None:
        raise click.UsageError("--npz takes every class; leave out --labels")
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = device or default_device()
    if device == "cuda" and world_size > 1:
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    pipeline = pipeline_for(model, arch=arch, vqvae=vqvae, device=device, dtype=getattr(torch, dtype))
    if npz is not None:
        _sample_npz(pipeline, npz, per_class or 0, name=model, seed=seed, rank=rank, world_size=world_size, **options)
        return
    names = pipeline.model.config.class_names
    chosen = [part.strip() for part in labels.split(",")] if labels else list(range(pipeline.model.config.num_classes))
    numbers = [pipeline.label_of(label) for label in chosen]
    each = [number for number in numbers for _ in range(n)]
    pictures = pipeline(each, seed=seed, progress=sys.stderr.isatty(), **options)
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for index, (label, picture) in enumerate(zip(each, pictures)):
        files.append(f"{index:05d}_{label}.png")
        picture.save(out / files[-1])
    grid(pictures, columns=n).save(out / "grid.png")
    config = pipeline.model.config
    for option in ("guidance_scale", "top_k", "top_p"):
        options[option] = getattr(config, option) if options[option] is None else options[option]
    record = {
        "command": f"mvar sample --model {model}",
        "version": __version__,
        "torch": torch.__version__,
        "dtype": dtype,
        "options": options,
        "pictures": [
            {"file": file, "label": label, "name": names[label] if names else None, "seed": seed + index}
            for index, (file, label) in enumerate(zip(files, each))
        ],
    }
    write_text(out / "samples.json", json.dumps(record, indent=2) + "\n")
    click.echo(f"{len(pictures)} pictures, grid.png and samples.json in {out}")


def _sample_npz(pipeline: Any, npz: Path, per_class: int, rank: int, world_size: int, **options: Any) -> None:
    from mvar_models.extras import require
    from mvar_models.npz import write_npz

    bar = require("tqdm", "train").tqdm(unit="batch", dynamic_ncols=True, disable=rank > 0 or not sys.stderr.isatty())

    def report(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    with bar:
        complete = write_npz(pipeline, npz, per_class=per_class, rank=rank, world_size=world_size, report=report, **options)
    if complete:
        click.echo(f"{pipeline.model.config.num_classes * per_class} pictures in {npz}")
    else:
        click.echo(f"process {rank} is done; the file appears when all {world_size} are (or when the command is run again)")


@main.command()
@click.option("--model", required=True, help="Zoo name, folder, file or Hub id.")
@click.option("--out", "-o", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The .pth to write.")
@click.option("--arch", type=click.Choice(["var", "mvar", "vqvae"]), default=None, help="For a released .pth that does not say which it is.")
@clear_errors
def export(model: str, out: Path, arch: str | None) -> None:
    """Write a model as a .pth that the released VAR and MVAR programs load strictly."""
    from mvar_models import VQVAE, zoo
    from mvar_models.pipeline import model_for

    entry = zoo.find(model)
    if arch == "vqvae" or (entry is not None and entry.model_type == "vqvae"):
        network: Any = VQVAE.from_pretrained(model)
    else:
        network = model_for(model, arch)
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out.parent} is no folder")
    click.echo(f"{network.num_parameters():,} parameters in {network.export_official(out)}")


@main.command()
@clear_errors
def doctor() -> None:
    """Check this installation: versions, devices, kernels against float64, embedded weights."""
    from mvar_kernels import selfcheck
    from mvar_models import MVARPipeline

    code = selfcheck.main()
    MVARPipeline.from_pretrained("mvar-digits")([0], seed=0)
    click.echo("embedded models: load and sample")
    sys.exit(code)


@main.command()
@click.option("--out", default="demo_out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--steps", default=None, type=click.IntRange(min=1), help="Fine-tuning steps. Default: what the report's gates were set for.")
@click.option("--samples", default=1000, type=click.IntRange(min=20), help="Pictures drawn from each model for the quality figures.")
@clear_errors
def demo(out: Path, steps: int | None, samples: int) -> None:
    """Fine-tune the embedded VAR into MVAR on handwritten digits and compare the two."""
    from mvar_models.demo import run_demo

    for line in run_demo(out, steps=steps, samples=samples):
        click.echo(line)


for _command in training_cli.COMMANDS:
    main.add_command(_command)
