"""The attention suite: every competitor on every case."""

from __future__ import annotations

import json

import click

from benchmarks.core import compare, machine, plots, report
from benchmarks.core.attention_report import REFERENCE, Result, growth, markdown, records, table
from benchmarks.core.cases import attention_cases
from benchmarks.core.ceilings import ceilings
from benchmarks.peers.baselines import baselines
from benchmarks.peers.gate import run_case
from benchmarks.suites.settings import Settings, written


def run(settings: Settings) -> list[str]:
    """Time all cases; write the results after each, so that a stopped run leaves what it measured."""
    cases = attention_cases(settings.device, settings.quick)
    peak_rates = ceilings(settings.device, {case.dtype for case in cases})
    facts = {
        **settings.facts,
        "copy_gb_per_s": round(peak_rates.copy / 1e9, 1),
        "matmul_tflops": {
            str(dtype).removeprefix("torch."): round(rate / 1e12, 3)
            for dtype, rate in peak_rates.matmul.items()
        },
    }
    competitors = [
        baseline
        for baseline in baselines()
        if settings.only is None or settings.only in baseline.name or baseline.name == REFERENCE
    ]
    results: list[Result] = []
    for case in cases:
        click.echo(f"{case.name} k{case.kernel_size} {case.direction} ...", err=True)
        results += run_case(case, competitors, settings.device, settings.seconds, peak_rates)
        rows = records(results)
        report.write(settings.out, "attention", facts, rows, markdown(rows))
    title = machine.line(facts)
    images = plots.save(plots.growth_figure(rows), settings.out / "growth.png", title)
    images += plots.save(plots.speedup_figure(rows), settings.out / "speedup.png", title)
    lines = [*table(rows), *growth(rows), written(settings.out, "attention", images)]
    if settings.compare_with is not None:
        before = json.loads(settings.compare_with.read_text(encoding="utf-8"))
        lines += compare.changes(before, {"machine": facts, "records": rows})
    return lines
