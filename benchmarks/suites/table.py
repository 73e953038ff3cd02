"""What each suite runs, writes and prints. A suite takes a Run and gives the lines for the terminal; what was measured survives a stop."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.core import compare, machine, plots, report
from benchmarks.core.cases import attention_cases
from benchmarks.suites import memory as memory_suite
from benchmarks.suites import model as model_suite
from benchmarks.suites import sampling as sampling_suite
from benchmarks.suites import targets
from benchmarks.suites.attention import run_case
from benchmarks.suites.baselines import baselines


@dataclass(frozen=True)
class Run:
    """seconds: of timing a competitor and case."""

    device: torch.device
    facts: dict[str, Any]
    quick: bool
    seconds: float
    out: Path
    only: str | None = None
    compare_with: Path | None = None


def attention(run: Run) -> list[str]:
    cases = attention_cases(run.device, run.quick)
    ceilings = machine.ceilings(run.device, {case.dtype for case in cases})
    facts = run.facts | {
        "copy_gb_per_s": round(ceilings.copy / 1e9, 1),
        "matmul_tflops": {
            str(dtype).removeprefix("torch."): round(rate / 1e12, 3)
            for dtype, rate in ceilings.matmul.items()
        },
    }
    competitors = [
        b for b in baselines() if run.only is None or run.only in b.name or b.name == report.REFERENCE
    ]
    results = []
    for case in cases:
        click.echo(f"{case.name} k{case.kernel_size} {case.direction} ...", err=True)
        results += list(run_case(case, competitors, run.device, run.seconds, ceilings))
        report.write(run.out, "attention", facts, report.rows(results))
    records = report.rows(results)
    lines = [*report.table(records), *report.growth(records)]
    pictures = plots.draw(run.out, records, machine.line(facts))
    lines.append(_written(run, "attention", pictures))
    if run.compare_with is not None:
        before = json.loads(run.compare_with.read_text(encoding="utf-8"))
        lines += compare.changes(before, {"machine": facts, "records": records})
    return lines


def cpu_targets(run: Run) -> list[str]:
    records, lines = targets.run(run.seconds)
    report.write(
        run.out,
        "cpu-targets",
        run.facts,
        records,
        [*report.table(records), "", *(f"- {line}" for line in lines)],
    )
    return lines


def model(run: Run) -> list[str]:
    jobs = [
        (shape, arch, what)
        for shape in model_suite.shapes(run.device, run.quick)
        for arch in ("var", "mvar")
        for what in model_suite.DIRECTIONS
    ]
    results: list[model_suite.ModelResult] = []
    for shape, arch, what in jobs:
        click.echo(f"{arch.upper()} {shape.name}, {what} ...", err=True)
        results += list(model_suite.run_shape(shape, arch, what, run.device, run.seconds))
        lines = _report_times(run, "model", model_suite.rows(results), model_suite.PLAIN)
    return lines


def sampling(run: Run) -> list[str]:
    results: list[sampling_suite.SamplingResult] = []
    for shape in sampling_suite.shapes(run.device, run.quick):
        click.echo(f"{shape.name}, sampling ...", err=True)
        results += list(sampling_suite.run_shape(shape, run.device, run.seconds))
        lines = _report_times(run, "sampling", sampling_suite.rows(results), sampling_suite.VAR_NAME)
    return lines


def _report_times(run: Run, name: str, records: list[dict[str, Any]], base: str) -> list[str]:
    """Write what there is so far; the lines to print."""
    lines = list(report.times(records, base))
    report.write(run.out, name, run.facts, records, lines)
    return [
        *lines,
        _written(
            run, name, plots.bars(run.out / f"{name}.png", records, f"{base} = 1", machine.line(run.facts))
        ),
    ]


def memory(run: Run) -> list[str]:
    click.echo("counting, then fresh processes ...", err=True)
    for records in memory_suite.run(run.device, run.quick):
        lines = list(memory_suite.lines(records))
        report.write(run.out, "memory", run.facts, records, lines)
    return [
        *lines,
        _written(run, "memory", plots.memory(run.out / "memory.png", records, machine.line(run.facts))),
    ]


def _written(run: Run, name: str, pictures: list[Path]) -> str:
    return f"written to {run.out}: {', '.join([f'{name}.csv', f'{name}.json', f'{name}.md', *(path.name for path in pictures)])}"


SUITES: dict[str, Callable[[Run], list[str]]] = {
    "attention": attention,
    "cpu-targets": cpu_targets,
    "model": model,
    "sampling": sampling,
    "memory": memory,
}
