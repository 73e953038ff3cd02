"""The command `mvar export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mvar_models.checkpoints import zoo
from mvar_models.networks.vqvae import VQVAE
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
    entry = zoo.find(model)
    if arch == "vqvae" or (entry is not None and entry.model_type == "vqvae"):
        network: Any = VQVAE.from_pretrained(model)
    else:
        network = model_for(model, arch)
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out.parent} is no folder")
    click.echo(f"{network.num_parameters():,} parameters in {network.export_official(out)}")
