"""`python -m benchmarks`: the command line of all suites, on a CPU or a GPU."""

from __future__ import annotations

from pathlib import Path

import click
import torch

from benchmarks.core import machine
from benchmarks.suites.settings import Settings
from benchmarks.suites.table import SUITES, load


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
@click.option("--only", help="Attention, family: what has this in its name; dense SDPA and VAR always run.")
@click.option("--device", help="Default: cuda if available.")
@click.option("--seconds", type=float, help="Time per competitor and case. Default: 1, with --quick 0.3.")
@click.option(
    "--compare-with",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Attention: an earlier attention.json.",
)
@click.option(
    "--capability",
    type=click.Choice(["80", "90"]),
    default="90",
    help="Emulated: compute capability that kernels are compiled for.",
)
@click.option(
    "--data", default="digits", help="Evaluation, family: real images in classes, as for mvar train."
)
@click.option("--neon", help="Family: model folder of mvar neon, whose images are then judged.")
@click.option("--scorer", help="Family: run of mvar train-scorer, whose images are then judged.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default="bench_out")
def main(
    suites: tuple[str, ...],
    quick: bool,
    only: str | None,
    device: str | None,
    seconds: float | None,
    out: Path,
    compare_with: Path | None,
    capability: str,
    data: str,
    neon: str | None,
    scorer: str | None,
) -> None:
    """Run suites, print tables, and write CSV, JSON, Markdown and plots.

    Suites measure attention, models, sampling and memory; "emulated" counts what the Triton kernels execute.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    settings = Settings(
        device=where,
        facts=machine.describe(where),
        quick=quick,
        seconds=seconds or (0.3 if quick else 1.0),
        out=out,
        only=only,
        compare_with=compare_with,
        capability=int(capability),
        data=data,
        neon=neon,
        scorer=scorer,
    )
    click.echo(machine.line(settings.facts))
    for suite in suites:
        click.echo(f"\n{suite}\n")
        click.echo("\n".join(load(suite)(settings)))


if __name__ == "__main__":
    main()
