"""Results of attention cases: records, table, and growth with the number of tokens."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from benchmarks.core.cases import Case
from benchmarks.core.measure import Timing
from benchmarks.core.report import Record, graph_cell, header, row, timing_columns

# Below this many tokens a call costs mostly its overhead, which says nothing about growth.
SLOPE_TOKENS = 256
# The competitor that speed-ups are over.
REFERENCE = "SDPA, dense mask"

Points = list[tuple[int, float]]


@dataclass(frozen=True)
class Result:
    """One competitor on one case.

    Attributes:
        case: The problem.
        name: The competitor.
        timing: None where it was not timed.
        reason: Why it was not timed.
        prepared: Seconds spent on masks and compilation before the first call.
        error: Largest difference from float64, relative to the largest value.
        time_over_floor: Median over the least time that this machine's measured peak rates allow.
    """

    case: Case
    name: str
    timing: Timing | None
    reason: str = ""
    prepared: float = 0.0
    error: float = 0.0
    time_over_floor: float | None = None


def records(results: Iterable[Result]) -> list[Record]:
    """Return one flat record per result; times in milliseconds."""
    results = list(results)
    dense = {r.case: r.timing for r in results if r.name == REFERENCE and r.timing}
    return [_record(r, dense.get(r.case)) for r in results]


def _record(result: Result, dense: Timing | None) -> Record:
    case, timing = result.case, result.timing
    record: Record = {
        "case": case.name,
        "kernel_size": case.kernel_size,
        "tokens": case.tokens,
        "batch": case.batch,
        "heads": case.heads,
        "head_dim": case.head_dim,
        "dtype": str(case.dtype).removeprefix("torch."),
        "cosine": case.cosine,
        "direction": case.direction,
        "competitor": result.name,
        "reason": result.reason,
    }
    if timing is None:
        return record
    return {
        **record,
        **timing_columns(timing, dense),
        "prepared_ms": result.prepared * 1e3,
        "error": result.error,
        "attended_pairs": case.attended_pairs,
        "useful_gflops": case.flops / timing.median / 1e9,
        "gb_per_s": case.least_bytes / timing.median / 1e9,
        "time_over_floor": result.time_over_floor,
        "flop_bound_speedup": case.tokens**2 / case.attended_pairs,
    }


def case_title(record: Record) -> str:
    """Return what distinguishes a record's case from all others."""
    shape = f"k{record['kernel_size']} b{record['batch']} h{record['heads']} {record['dtype']}"
    return f"{record['case']} {shape}{' cosine' if record['cosine'] else ''}"


def table(records: list[Record]) -> Iterator[str]:
    """Yield the Markdown table, one line per record."""
    titles = ["case", "direction", "competitor", "median ms", "p20 .. p80", "x over dense", "FLOP bound"]
    titles += ["time / floor", "first call ms"]
    graphs = any(r.get("graph_ms") for r in records)
    yield from header([*titles, *(["CUDA graph ms"] if graphs else [])])
    for r in records:
        cells = [case_title(r), r["direction"], r["competitor"]]
        if r["reason"]:
            cells += ["-", r["reason"], "", "", "", ""]
        else:
            spread = f"{r['p20_ms']:.3f} .. {r['p80_ms']:.3f}"
            speedup = "" if r["speedup"] is None else f"{r['speedup']:.2f}"
            cells += [f"{r['median_ms']:.3f}", spread, speedup, f"{r['flop_bound_speedup']:.1f}"]
            cells += [f"{r['time_over_floor']:.2f}", f"{r['first_ms']:.1f}"]
        yield row([*cells, *([graph_cell(r, 3)] if graphs else [])])


def slope(points: Points) -> float:
    """Return the least-squares slope of log time over log tokens."""
    x, y = ([math.log(value) for value in axis] for axis in zip(*points))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y)) / sum((a - mean_x) ** 2 for a in x)


def grid_series(records: list[Record]) -> dict[tuple[str, str], Points]:
    """Return (tokens, ms per batch element) on single grids with windows of 7, by (direction, competitor)."""
    series: dict[tuple[str, str], Points] = defaultdict(list)
    for r in records:
        if r["case"].startswith("grid") and r["kernel_size"] == 7 and not r["reason"]:
            series[r["direction"], r["competitor"]].append((r["tokens"], r["median_ms"] / r["batch"]))
    return {key: sorted(points) for key, points in sorted(series.items())}


def growth(records: list[Record]) -> Iterator[str]:
    """Yield the slope of log time over log tokens per competitor: 1 is O(N), 2 is O(N^2)."""
    for (direction, name), all_points in grid_series(records).items():
        points = [point for point in all_points if point[0] >= SLOPE_TOKENS]
        if len(points) < 2:
            continue
        (before, before_ms), (last, last_ms) = points[-2:]
        yield (
            f"{name}, {direction}: time ~ N^{slope(points):.2f} from {points[0][0]} to {last} tokens; "
            f"{last} over {before} tokens: x {last_ms / before_ms:.2f}"
        )


def markdown(records: list[Record]) -> list[str]:
    """Return the lines of attention.md: the table, then the growth as a list."""
    return [*table(records), "", *(f"- {line}" for line in growth(records))]
