"""The command `mvar gallery`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mvar_models.cli.drawing_options import (
    checkpoint_options,
    chosen_labels,
    filter_options,
    load_pipeline,
    seed_option,
)
from mvar_models.demo.gallery import draw_gallery


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
