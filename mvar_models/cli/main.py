"""The `mvar` command (`python -m mvar_models` is the same). Flags are the Python arguments' names."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import click

from mvar_models import __version__
from mvar_models.cli import train as training_cli
from mvar_models.cli.common import clear_errors
from mvar_models.cli.sample import sample


@click.group(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mvar")
def main() -> None:
    """VAR and MVAR: sample, train, fine-tune."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")


@main.command()
@click.argument("pattern", default="*")
def models(pattern: str) -> None:
    """Models of the zoo whose names match PATTERN."""
    from mvar_models.checkpoints.zoo import find, list_models

    if not list_models(pattern):
        raise click.UsageError(f"no model matches {pattern!r}; there are {', '.join(list_models())}")
    click.echo(
        f"{'name':20} {'kind':6} {'px':>4} {'parameters':>10} {'FID':>5} {'IS':>6}  {'guidance top_k top_p':20}  {'licence':12}  weights"
    )
    for name in list_models(pattern):
        entry = find(name)
        fid, inception = (
            f"{entry.scores[score]:{form}}" if score in entry.scores else "-"
            for score, form in (("FID", ".2f"), ("IS", ".1f"))
        )
        preset = "" if entry.model_type == "vqvae" else "in its config"
        if "top_k" in entry.preset:
            preset = "{guidance_scale:8.1f} {top_k:5} {top_p:5.2f}".format(**entry.preset)
        facts = f"{name:20} {entry.model_type:6} {entry.resolution:4} {entry.parameters:>10} {fid:>5} {inception:>6}  {preset:20}  {entry.licence:12}"
        click.echo(f"{facts}  {entry.repository}/{entry.file}")
    click.echo("FID and IS: as published by the authors for 50,000 pictures, not measured here.")


@main.command()
@click.option("--model", required=True, help="Zoo name, folder, file or Hub id.")
@click.option(
    "--out", "-o", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The .pth to write."
)
@click.option(
    "--arch",
    type=click.Choice(["var", "mvar", "vqvae"]),
    default=None,
    help="For a released .pth that does not say which it is.",
)
@clear_errors
def export(model: str, out: Path, arch: str | None) -> None:
    """Write a model as a .pth that the released VAR and MVAR programs load strictly."""
    from mvar_models import VQVAE
    from mvar_models.checkpoints import zoo
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
@click.option(
    "--steps",
    default=None,
    type=click.IntRange(min=1),
    help="Fine-tuning steps. Default: what the report's gates were set for.",
)
@click.option(
    "--samples",
    default=1000,
    type=click.IntRange(min=20),
    help="Pictures drawn from each model for the quality figures.",
)
@clear_errors
def demo(out: Path, steps: int | None, samples: int) -> None:
    """Fine-tune the embedded VAR into MVAR on handwritten digits and compare the two."""
    from mvar_models.demo import run_demo

    for line in run_demo(out, steps=steps, samples=samples):
        click.echo(line)


for _command in (sample, *training_cli.COMMANDS):
    main.add_command(_command)
