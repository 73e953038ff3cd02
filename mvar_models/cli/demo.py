"""The commands `mvar demo` and `mvar doctor`, which show that an installation works."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from mvar_kernels import __main__ as selfcheck
from mvar_models.demo import run_demo
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
