"""The command `mvar export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mvar_models.checkpoints.peek import open_checkpoint
from mvar_models.pipeline import model_for
from mvar_models.registry import ARCHITECTURES


@click.command()
@click.option("--model", required=True, help="Zoo name, folder, file or Hub id.")
@click.option(
    "--out", "-o", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The .pth to write."
)
@click.option(
    "--arch",
    type=click.Choice(list(ARCHITECTURES)),
    default=None,
    help="Architecture of a released .pth that does not say which it is.",
)
def export(model: str, out: Path, arch: str | None) -> None:
    """Write a model as a .pth that the released VAR and MVAR programs load strictly."""
    checkpoint = open_checkpoint(model)
    kind = checkpoint.kind(arch)
    if kind in ARCHITECTURES and not ARCHITECTURES[kind].draws:
        network: Any = ARCHITECTURES[kind].network_class().from_pretrained(checkpoint)
    else:
        network = model_for(checkpoint, arch)
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out.parent} is no folder")
    click.echo(f"{network.num_parameters():,} parameters in {network.export_official(out)}")
