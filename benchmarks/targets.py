"""What is asked of a CPU, as ratios measured in one run: float32, 8 heads of 64, windows of 7.

Growth is measured twice. A result of 128 x 128 is 32 MiB, which glibc maps anew for every call, so that each of its 8,192 pages is a fault; at
64 x 64 it hands out the same 8 MiB again. That is 10 of 80 ms forward at 128 x 128. With an allocator that keeps memory, which glibc can be told
to be, the work itself is seen to grow.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from benchmarks import machine, report
from benchmarks.attention import Result, run_case, run_together
from benchmarks.baselines import DenseMask, Ours
from benchmarks.cases import grid
from benchmarks.measure import Timing

FORWARD, BOTH, GROWTH = 9.0, 10.0, 4.6
AUTO_RATIO, AUTO_SECONDS = 1.1, 50e-6
_SMALL_SIDES = tuple(range(1, 17))


def run(seconds: float) -> tuple[list[dict[str, Any]], list[str]]:
    """Records, and a line for each target: reached or missed."""
    device = torch.device("cpu")
    ceilings = machine.ceilings(device, {torch.float32})
    dense, tiled, auto = DenseMask(), Ours("tiled"), Ours("auto")
    results: list[Result] = []
    growing = ((grid(64), grid(128)), (grid(64).both(), grid(128).both()))
    for small, large in growing:
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
        lines.append(_line(ratio >= least, f"64 x 64, {direction}: tiled is {ratio:.1f} x as fast as dense SDPA (at least {least:g})"))
    for direction in ("forward", "both"):
        lines.append(_growth(timing["grid 64", direction, tiled.name], timing["grid 128", direction, tiled.name], direction))
    for direction in ("forward", "both"):
        excess = {
            side: timing[f"grid {side}", direction, auto.name].median - AUTO_RATIO * timing[f"grid {side}", direction, dense.name].median
            for side in _SMALL_SIDES
        }
        side = max(excess, key=excess.__getitem__)
        text = f"auto over {AUTO_RATIO:g} x dense at sides 1 to 16, {direction}: at most {excess[side] * 1e6:.0f} us more (side {side}; 50 allowed)"
        lines.append(_line(excess[side] <= AUTO_SECONDS, text))
    if keep_memory():
        for small, large in growing:
            kept = list(run_together([(small, [tiled]), (large, [tiled])], device, 4 * seconds, ceilings))
            lines.append(_growth(kept[0].timing, kept[1].timing, f"{small.direction}, memory kept between calls"))
    return report.rows(results), lines


def keep_memory() -> bool:
    """Have glibc keep all memory of this process, from now on; False where there is no glibc."""
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    trim_threshold, mmap_max = -1, -4  # of malloc.h
    return bool(mallopt(mmap_max, 0) and mallopt(trim_threshold, 2**31 - 1))


def _growth(small: Timing | None, large: Timing | None, what: str) -> str:
    if small is None or large is None:
        raise RuntimeError(f"nothing was measured for {what}")
    ratio = large.over(small)
    return _line(ratio <= GROWTH, f"128 x 128 over 64 x 64, {what}: {ratio:.2f} x the time (at most {GROWTH:g})")


def _line(reached: bool, text: str) -> str:
    return f"[{'reached' if reached else 'MISSED'}] {text}"
