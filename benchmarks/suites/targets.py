"""What is asked of a CPU, as ratios measured in one run: float32, 8 heads of 64, windows of 7."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.core import machine, report
from benchmarks.core.cases import grid
from benchmarks.suites.attention import Result, run_case, run_together
from benchmarks.suites.baselines import DenseMask, Ours

FORWARD, BOTH, GROWTH = 9.0, 10.0, 4.6
AUTO_RATIO, AUTO_SECONDS = 1.1, 50e-6
_SMALL_SIDES = tuple(range(1, 17))


def run(seconds: float) -> tuple[list[dict[str, Any]], list[str]]:
    """Records, and a line for each target: reached or missed."""
    device = torch.device("cpu")
    ceilings = machine.ceilings(device, {torch.float32})
    dense, tiled, auto = DenseMask(), Ours("tiled"), Ours("auto")
    results: list[Result] = []
    for small, large in ((grid(64), grid(128)), (grid(64).both(), grid(128).both())):
        results += run_together([(small, [dense, tiled]), (large, [tiled])], device, 4 * seconds, ceilings)
    for side in _SMALL_SIDES:
        for case in (grid(side), grid(side).both()):
            results += run_case(case, [dense, auto], device, seconds, ceilings)
    refused = [f"{r.case.name} {r.case.direction}, {r.name}: {r.reason}" for r in results if not r.timing]
    if refused:
        raise RuntimeError("; ".join(refused))
    timing = {(r.case.name, r.case.direction, r.name): r.timing for r in results if r.timing}

    lines = []
    for direction, least in (("forward", FORWARD), ("both", BOTH)):
        ratio = timing["grid 64", direction, dense.name].over(timing["grid 64", direction, tiled.name])
        lines.append(
            _line(
                ratio >= least,
                f"64 x 64, {direction}: tiled is {ratio:.1f} x as fast as dense SDPA (at least {least:g})",
            )
        )
    for direction in ("forward", "both"):
        ratio = timing["grid 128", direction, tiled.name].over(timing["grid 64", direction, tiled.name])
        lines.append(
            _line(
                ratio <= GROWTH,
                f"128 x 128 over 64 x 64, {direction}: {ratio:.2f} x the time (at most {GROWTH:g})",
            )
        )
    for direction in ("forward", "both"):
        excess = {
            side: timing[f"grid {side}", direction, auto.name].beyond(
                timing[f"grid {side}", direction, dense.name], AUTO_RATIO
            )
            for side in _SMALL_SIDES
        }
        side = max(excess, key=excess.__getitem__)
        text = f"auto over {AUTO_RATIO:g} x dense at sides 1 to 16, {direction}: at most {excess[side] * 1e6:.0f} us more (side {side}; 50 allowed)"
        lines.append(_line(excess[side] <= AUTO_SECONDS, text))
    return report.rows(results), lines


def _line(reached: bool, text: str) -> str:
    return f"[{'reached' if reached else 'MISSED'}] {text}"
