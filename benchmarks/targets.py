"""What is asked of a CPU, as ratios measured in one run: float32, 8 heads of 64, windows of 7.

Growth is measured twice. A result of 128 x 128 is 32 MiB, which glibc maps anew for every call, so that each of its 8,192 pages is a fault; at
64 x 64 it hands out the same 8 MiB again. That is 10 of 80 ms forward at 128 x 128. With an allocator that keeps memory, which glibc can be told
to be, the work itself is seen to grow.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from benchmarks import fresh, machine, report
from benchmarks.attention import Result, run_case, run_together
from benchmarks.baselines import DenseMask, Ours
from benchmarks.cases import Case, grid

FORWARD, BOTH, GROWTH = 9.0, 10.0, 4.6
AUTO_RATIO, AUTO_SECONDS = 1.1, 50e-6
_SMALL_SIDES = tuple(range(1, 17))


def run(seconds: float) -> tuple[list[dict[str, Any]], list[str]]:
    """Records, and a line for each target: reached or missed."""
    device = torch.device("cpu")
    ceilings = machine.ceilings(device, {torch.float32})
    dense, tiled, auto = DenseMask(), Ours("tiled"), Ours("auto")
    results: list[Result] = []
    for small, large in _growing().values():
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
        ratio = timing["grid 128", direction, tiled.name].over(timing["grid 64", direction, tiled.name])
        lines.append(_growth(ratio, direction))
    for direction in ("forward", "both"):
        excess = {
            side: timing[f"grid {side}", direction, auto.name].median - AUTO_RATIO * timing[f"grid {side}", direction, dense.name].median
            for side in _SMALL_SIDES
        }
        side = max(excess, key=excess.__getitem__)
        text = f"auto over {AUTO_RATIO:g} x dense at sides 1 to 16, {direction}: at most {excess[side] * 1e6:.0f} us more (side {side}; 50 allowed)"
        lines.append(_line(excess[side] <= AUTO_SECONDS, text))
    for direction in ("forward", "both"):
        try:
            ratio = fresh.run("grow", direction=direction, seconds=4 * seconds)["ratio"]
        except RuntimeError as error:
            lines.append(f"128 x 128 over 64 x 64, {direction}, memory kept between calls: not measured, {error}")
        else:
            lines.append(_growth(ratio, f"{direction}, memory kept between calls"))
    return report.rows(results), lines


def grow(direction: str, seconds: float) -> dict[str, float]:
    """Time at 128 x 128 over time at 64 x 64 in a process of which glibc keeps the memory; it would keep it for whatever is measured later."""
    _keep_memory()
    device, tiled = torch.device("cpu"), Ours("tiled")
    small, large = _growing()[direction]
    ceilings = machine.ceilings(device, {torch.float32})
    found = list(run_together([(small, [tiled]), (large, [tiled])], device, seconds, ceilings))
    first, second = (result.timing for result in found)
    if first is None or second is None:
        raise RuntimeError("; ".join(result.reason for result in found if result.reason))
    return {"ratio": second.over(first), "small_ms": first.median * 1e3, "large_ms": second.median * 1e3}


def _growing() -> dict[str, tuple[Case, Case]]:
    return {"forward": (grid(64), grid(128)), "both": (grid(64).both(), grid(128).both())}


def _keep_memory() -> None:
    """Have glibc keep all memory of this process, from now on; RuntimeError where there is no glibc."""
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        raise RuntimeError("there is no glibc here") from None
    trim_threshold, mmap_max = -1, -4  # of malloc.h
    if not (mallopt(mmap_max, 0) and mallopt(trim_threshold, 2**31 - 1)):
        raise RuntimeError("glibc refuses to keep memory")


def _growth(ratio: float, what: str) -> str:
    return _line(ratio <= GROWTH, f"128 x 128 over 64 x 64, {what}: {ratio:.2f} x the time (at most {GROWTH:g})")


def _line(reached: bool, text: str) -> str:
    return f"[{'reached' if reached else 'MISSED'}] {text}"
