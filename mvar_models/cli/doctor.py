"""The command `mvar doctor`."""

from __future__ import annotations

import sys

import click

from mvar_kernels import selfcheck
from mvar_models.pipeline import MVARPipeline


@click.command()
def doctor() -> None:
    """Check this installation: versions, devices, kernels against float64, embedded weights."""
    code = selfcheck.main()
    MVARPipeline.from_pretrained("mvar-digits")([0], seed=0)
    click.echo("embedded models: load and sample")
    sys.exit(code)
