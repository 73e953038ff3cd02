"""The cpu-targets suite: the project's limits for the CPU path, as ratios measured within one run.

All cases are float32, 8 heads of 64, windows of 7.
"""

from __future__ import annotations

import torch

from benchmarks.core import report
from benchmarks.core.attention_report import Result, records, table
from benchmarks.core.cases import grid
from benchmarks.core.ceilings import ceilings
from benchmarks.core.report import Record
from benchmarks.peers.baselines import DenseMask, Ours
from benchmarks.peers.gate import run_case, run_together
from benchmarks.suites.settings import Settings

# `tiled` over dense SDPA at 64 x 64, and 128 x 128 over 64 x 64 (four times the tokens).
LEAST_SPEEDUP = {"forward": 9.0, "both": 10.0}
MOST_GROWTH = 4.6
# `auto` against dense SDPA on small grids: this ratio, plus seconds for the cost of choosing.
AUTO_RATIO, AUTO_SECONDS = 1.1, 50e-6
_SMALL_SIDES = tuple(range(1, 17))


def run(settings: Settings) -> list[str]:
    """Measure and write all; return a line per target."""
    rows, lines = measure_targets(settings.seconds)
    markdown = [*table(rows), "", *(f"- {line}" for line in lines)]
    report.write(settings.out, "cpu-targets", settings.facts, rows, markdown)
    return lines


def measure_targets(seconds: float) -> tuple[list[Record], list[str]]:
    """Return the records, and for each target a line that says whether it was reached.

    Raises:
        RuntimeError: a competitor could not be timed.
    """
    device = torch.device("cpu")
    peak_rates = ceilings(device, {torch.float32})
    dense, tiled, auto = DenseMask(), Ours("tiled"), Ours("auto")
    results: list[Result] = []
    for small, large in ((grid(64), grid(128)), (grid(64).both(), grid(128).both())):
        entries = [(small, [dense, tiled]), (large, [tiled])]
        results += run_together(entries, device, 4 * seconds, peak_rates)
    for side in _SMALL_SIDES:
        for case in (grid(side), grid(side).both()):
            results += run_case(case, [dense, auto], device, seconds, peak_rates)
    refused = [f"{r.case.name} {r.case.direction}, {r.name}: {r.reason}" for r in results if not r.timing]
    if refused:
        raise RuntimeError("; ".join(refused))
    timing = {(r.case.name, r.case.direction, r.name): r.timing for r in results if r.timing}

    lines = []
    for direction, least in LEAST_SPEEDUP.items():
        ratio = timing["grid 64", direction, dense.name].over(timing["grid 64", direction, tiled.name])
        text = f"64 x 64, {direction}: tiled is {ratio:.1f} x as fast as dense SDPA (at least {least:g})"
        lines.append(_line(ratio >= least, text))
    for direction in LEAST_SPEEDUP:
        ratio = timing["grid 128", direction, tiled.name].over(timing["grid 64", direction, tiled.name])
        text = f"128 x 128 over 64 x 64, {direction}: {ratio:.2f} x the time (at most {MOST_GROWTH:g})"
        lines.append(_line(ratio <= MOST_GROWTH, text))
    for direction in LEAST_SPEEDUP:
        excess = {
            side: timing[f"grid {side}", direction, auto.name].beyond(
                timing[f"grid {side}", direction, dense.name], AUTO_RATIO
            )
            for side in _SMALL_SIDES
        }
        worst = max(excess, key=excess.__getitem__)
        text = (
            f"auto over {AUTO_RATIO:g} x dense at sides 1 to 16, {direction}: at most "
            f"{excess[worst] * 1e6:.0f} us more (side {worst}; {AUTO_SECONDS * 1e6:.0f} allowed)"
        )
        lines.append(_line(excess[worst] <= AUTO_SECONDS, text))
    return records(results), lines


def _line(reached: bool, text: str) -> str:
    return f"[{'reached' if reached else 'MISSED'}] {text}"
