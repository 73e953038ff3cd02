"""`python -m benchmarks`: one command, on a CPU or a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import click
import torch

from benchmarks import compare, machine, plots, report, targets
from benchmarks.attention import run_case
from benchmarks.baselines import baselines
from benchmarks.cases import attention_cases


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--suite", type=click.Choice(["attention", "cpu-targets"]), default="attention")
@click.option("--quick", is_flag=True, help="Fewer cases and shorter timings.")
@click.option("--only", default=None, help="Competitors whose name contains this; the dense one always runs.")
@click.option("--device", default=None, help="Default: cuda where there is one.")
@click.option("--seconds", type=float, default=None, help="Timing a competitor and case. Default: 1, quick 0.3.")
@click.option("--compare-with", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="An earlier attention.json.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default="bench_out")
def main(suite: str, quick: bool, only: str | None, device: str | None, seconds: float | None, out: Path, compare_with: Path | None) -> None:
    """Time attention over windows and its peers; print a table; write CSV, JSON and Markdown."""
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    facts = machine.describe(place)
    click.echo(machine.line(facts))
    seconds = seconds or (0.3 if quick else 1.0)
    if suite == "cpu-targets":
        records, lines = targets.run(seconds)
        report.write(out, "cpu-targets", facts, records)
        click.echo("\n".join(lines))
        return
    cases = attention_cases(place, quick)
    ceilings = machine.ceilings(place, {case.dtype for case in cases})
    facts["copy_gb_per_s"] = round(ceilings.copy / 1e9, 1)
    facts["matmul_tflops"] = {str(dtype).removeprefix("torch."): round(rate / 1e12, 3) for dtype, rate in ceilings.matmul.items()}
    competitors = [b for b in baselines() if only is None or only in b.name or b.name == report.REFERENCE]
    results = []
    for case in cases:
        click.echo(f"{case.name} k{case.kernel_size} {case.direction} ...", err=True)
        results += list(run_case(case, competitors, place, seconds, ceilings))
        report.write(out, "attention", facts, report.rows(results))  # what was measured so far survives a stop
    records = report.rows(results)
    click.echo("\n".join(report.table(records)))
    click.echo("\n".join(report.growth(records)))
    pictures = plots.draw(out, records, machine.line(facts))
    click.echo(f"written to {out}: attention.csv, attention.json, attention.md{''.join(f', {path.name}' for path in pictures)}")
    if compare_with is not None:
        before = json.loads(compare_with.read_text(encoding="utf-8"))
        click.echo("\n".join(compare.changes(before, {"machine": facts, "records": records})))


if __name__ == "__main__":
    main()
