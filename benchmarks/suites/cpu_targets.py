"""The cpu-targets suite: the project's limits for the CPU path, as ratios measured within one run.

64 x 64 is measured alone and beside other processes, which the suite starts and stops. Pyramids whose tokens
see the scale before as well are measured against those without. All cases are float32, 8 heads of 64, windows
of 7.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from benchmarks.core import report
from benchmarks.core.attention_report import REFERENCE, Result, records, table
from benchmarks.core.cases import Case, grid, pyramid
from benchmarks.core.ceilings import ceilings
from benchmarks.core.measure import Timing
from benchmarks.core.neighbours import LOOP, PYTORCH, neighbour
from benchmarks.core.report import Record
from benchmarks.peers.baselines import DenseMask, Ours
from benchmarks.peers.gate import run_case, run_together
from benchmarks.suites.settings import Settings

# `tiled` over dense SDPA at 64 x 64, and 128 x 128 over 64 x 64 (four times the tokens).
LEAST_SPEEDUP = {"forward": 9.0, "both": 10.0}
MOST_GROWTH = 4.6
# A pyramid whose tokens see the scale before as well, over one without; about twice the pairs.
MOST_ADJACENT = 2.3
ADJACENT_SIZES = ("512px", "1024px")
# What `tiled` computes beside, and what must be left of the speedup that the same run shows alone. The loop
# takes one core; PyTorch takes all of them.
NEIGHBOURS = {"a busy loop": LOOP, "a second PyTorch program": PYTORCH}
LEAST_LEFT = {"a busy loop": 0.5}
# `auto` against dense SDPA on small grids: this ratio, plus seconds for the cost of choosing.
AUTO_RATIO, AUTO_SECONDS = 1.1, 50e-6
_SMALL_SIDES = tuple(range(1, 17))

# By case, direction and competitor.
Timings = dict[tuple[str, str, str], Timing]


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
    alone: list[Result] = []
    for small, large in ((grid(64), grid(128)), (grid(64).both(), grid(128).both())):
        entries = [(small, [dense, tiled]), (large, [tiled])]
        alone += run_together(entries, device, 4 * seconds, peak_rates)
    beside: dict[str, list[Result]] = {}
    for name, program in NEIGHBOURS.items():
        with neighbour(program):
            beside[name] = [
                result
                for case in (grid(64), grid(64).both())
                for result in run_case(case, [dense, tiled], device, 4 * seconds, peak_rates)
            ]
    for side in _SMALL_SIDES:
        for case in (grid(side), grid(side).both()):
            alone += run_case(case, [dense, auto], device, seconds, peak_rates)

    for pair in _adjacent_pairs():
        alone += run_together([(case, [tiled]) for case in pair], device, 4 * seconds, peak_rates)

    rows = records(alone)
    for name, results in beside.items():
        rows += [{**record, "case": f"{record['case']} beside {name}"} for record in records(results)]
    timings = _timings(alone)
    speed = _speed_lines(timings, {name: _timings(results) for name, results in beside.items()})
    return rows, [*speed, *_growth_lines(timings), *_adjacent_lines(timings), *_auto_lines(timings)]


def _adjacent_pairs() -> Iterator[tuple[Case, Case]]:
    """Yield pyramids without previous scales and with one, forward and with backward."""
    for size in ADJACENT_SIZES:
        own = replace(pyramid(size), dense_scales=6)
        for case in (own, own.both()):
            yield case, replace(case, name=f"{case.name} adjacent", previous_scales=1)


def _timings(results: list[Result]) -> Timings:
    refused = [f"{r.case.name} {r.case.direction}, {r.name}: {r.reason}" for r in results if not r.timing]
    if refused:
        raise RuntimeError("; ".join(refused))
    return {(r.case.name, r.case.direction, r.name): r.timing for r in results if r.timing}


def _speedup(timings: Timings, direction: str) -> float:
    return timings["grid 64", direction, REFERENCE].over(timings["grid 64", direction, "mvar tiled"])


def _speed_lines(alone: Timings, beside: dict[str, Timings]) -> Iterator[str]:
    for direction, least in LEAST_SPEEDUP.items():
        ratio = _speedup(alone, direction)
        text = f"64 x 64, {direction}: tiled is {ratio:.1f} x as fast as dense SDPA (at least {least:g})"
        yield _line(ratio >= least, text)
    for name, timings in beside.items():
        for direction in LEAST_SPEEDUP:
            ratio = _speedup(timings, direction)
            left = ratio / _speedup(alone, direction)
            text = f"64 x 64, {direction}, beside {name}: {ratio:.1f} x, {left:.0%} of what it is alone"
            least_left = LEAST_LEFT.get(name)
            if least_left is None:
                yield f"[no target] {text}"
            else:
                yield _line(left >= least_left, f"{text} (at least {least_left:.0%})")


def _growth_lines(timings: Timings) -> Iterator[str]:
    for direction in LEAST_SPEEDUP:
        large, small = (timings[f"grid {side}", direction, "mvar tiled"] for side in (128, 64))
        ratio = large.over(small)
        text = f"128 x 128 over 64 x 64, {direction}: {ratio:.2f} x the time (at most {MOST_GROWTH:g})"
        yield _line(ratio <= MOST_GROWTH, text)


def _adjacent_lines(timings: Timings) -> Iterator[str]:
    for own, adjacent in _adjacent_pairs():
        one, none = (timings[case.name, case.direction, "mvar tiled"] for case in (adjacent, own))
        ratio = one.over(none)
        text = f"{adjacent.name}, {own.direction}: {ratio:.2f} x the time (at most {MOST_ADJACENT:g})"
        yield _line(ratio <= MOST_ADJACENT, text)


def _auto_lines(timings: Timings) -> Iterator[str]:
    for direction in LEAST_SPEEDUP:
        excess = {
            side: timings[f"grid {side}", direction, "mvar auto"].beyond(
                timings[f"grid {side}", direction, REFERENCE], AUTO_RATIO
            )
            for side in _SMALL_SIDES
        }
        worst = max(excess, key=excess.__getitem__)
        text = (
            f"auto over {AUTO_RATIO:g} x dense at sides 1 to 16, {direction}: at most "
            f"{excess[worst] * 1e6:.0f} us more (side {worst}; {AUTO_SECONDS * 1e6:.0f} allowed)"
        )
        yield _line(excess[worst] <= AUTO_SECONDS, text)


def _line(reached: bool, text: str) -> str:
    return f"[{'reached' if reached else 'MISSED'}] {text}"
