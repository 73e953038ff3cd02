"""The commands `mvar demo`, `mvar doctor` and `mvar gallery`: what an installation and a model do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from mvar_kernels import __main__ as selfcheck
from mvar_models.cli.drawing_options import (
    checkpoint_options,
    chosen_labels,
    filter_options,
    load_pipeline,
    seed_option,
)
from mvar_models.demo import run_demo
from mvar_models.demo.gallery import draw_gallery
from mvar_models.pipeline import MVARPipeline


@click.command()
@click.option(
    "--out", default="demo_out", type=click.Path(path_type=Path, file_okay=False), help="Folder to write."
)
@click.option(
    "--steps",
    default=None,
    type=click.IntRange(min=1),
    help="Fine-tuning steps. Default: the number that the report's gates were set for.",
)
@click.option(
    "--samples",
    default=1000,
    type=click.IntRange(min=20),
    help="Images to generate with each model for the quality figures.",
)
def demo(out: Path, steps: int | None, samples: int) -> None:
    """Fine-tune the embedded VAR into MVAR on handwritten digits and compare the two."""
    for line in run_demo(out, steps=steps, samples=samples):
        click.echo(line)


@click.command()
def doctor() -> None:
    """Check this installation: versions, devices, kernels against float64, embedded weights."""
    code = selfcheck.main()
    MVARPipeline.from_pretrained("mvar-digits")([0], seed=0)
    click.echo("embedded models: load and sample")
    sys.exit(code)


@click.command()
@checkpoint_options
@click.option(
    "--labels",
    default=None,
    help="Class numbers or names, separated by commas. Default: all, or twenty spread evenly over more.",
)
@click.option("--n", default=6, type=click.IntRange(min=1), help="Images per class.")
@seed_option("Image i of a sheet takes seed + i.")
@filter_options
@click.option(
    "--out",
    "-o",
    default="gallery",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the PNGs and their index.",
)
def gallery(
    model: str | None,
    vqvae: str | None,
    arch: str | None,
    dtype: str,
    device: str | None,
    preset: Path | None,
    labels: str | None,
    n: int,
    seed: int,
    out: Path,
    **given: Any,
) -> None:
    """Draw contact sheets of a model: its classes, its scales, an in-painting and a change of class."""
    pipeline = load_pipeline(model, arch=arch, vqvae=vqvae, dtype=dtype, device=device, preset=preset)
    chosen = chosen_labels(labels, pipeline)
    files = draw_gallery(pipeline, out, name=str(model), labels=chosen, samples=n, seed=seed, **given)
    click.echo(f"{len(files) - 1} sheets, listed in {files[-1]}")
