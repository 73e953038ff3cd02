"""`python -m benchmarks`: one command, on a CPU or a GPU."""

from __future__ import annotations

from pathlib import Path

import click
import torch

from benchmarks.core import machine
from benchmarks.suites.table import SUITES, Run


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option(
    "--suite",
    "suites",
    type=click.Choice(list(SUITES)),
    multiple=True,
    default=["attention"],
    help="May be given several times.",
)
@click.option("--quick", is_flag=True, help="Fewer cases, smaller models and shorter timings.")
@click.option(
    "--only", default=None, help="Attention: competitors whose name contains this; the dense one always runs."
)
@click.option("--device", default=None, help="Default: cuda where there is one.")
@click.option(
    "--seconds", type=float, default=None, help="Timing a competitor and case. Default: 1, quick 0.3."
)
@click.option(
    "--compare-with",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="An earlier attention.json.",
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default="bench_out")
def main(
    suites: tuple[str, ...],
    quick: bool,
    only: str | None,
    device: str | None,
    seconds: float | None,
    out: Path,
    compare_with: Path | None,
) -> None:
    """Time and weigh attention, models and sampling beside their peers; print tables; write CSV, JSON, Markdown and pictures."""
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    run = Run(
        place, machine.describe(place), quick, seconds or (0.3 if quick else 1.0), out, only, compare_with
    )
    click.echo(machine.line(run.facts))
    for suite in suites:
        click.echo(f"\n{suite}\n")
        click.echo("\n".join(SUITES[suite](run)))


if __name__ == "__main__":
    main()
