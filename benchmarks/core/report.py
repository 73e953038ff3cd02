"""Results as a table to read, CSV and JSON to compute with, and the growth with the number of tokens."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.core.machine import line
from benchmarks.core.measure import Timing
from benchmarks.suites.attention import Result
from benchmarks.suites.baselines import REFERENCE
from mvar_models.files import write_text

# Fewer tokens than this are mostly the cost of a call.
SLOPE_TOKENS = 256


def rows(results: Iterable[Result]) -> list[dict[str, Any]]:
    """One flat record a result; times in milliseconds."""
    results = list(results)
    dense = {r.case: r.timing for r in results if r.name == REFERENCE and r.timing}
    out = []
    for r in results:
        case, timing = r.case, r.timing
        record: dict[str, Any] = {
            "case": case.name, "kernel_size": case.kernel_size, "tokens": case.tokens, "batch": case.batch, "heads": case.heads,
            "head_dim": case.head_dim, "dtype": str(case.dtype).removeprefix("torch."), "cosine": case.cosine, "direction": case.direction,
            "competitor": r.name, "reason": r.reason,
        }  # fmt: skip
        if timing is not None:
            record |= timed(timing, dense.get(case)) | {
                "prepared_ms": r.prepared * 1e3, "error": r.error,
                "attended_pairs": case.attended_pairs, "useful_gflops": case.flops / timing.median / 1e9,
                "gb_per_s": case.least_bytes / timing.median / 1e9, "time_over_floor": r.time_over_floor,
                "flop_bound_speedup": case.tokens**2 / case.attended_pairs,
            }  # fmt: skip
        out.append(record)
    return out


def timed(timing: Timing | None, base: Timing | None) -> dict[str, Any]:
    """A timing's columns, in milliseconds, with the speed-up over `base`, of the same rounds; none without a timing."""
    if timing is None:
        return {}
    return {
        "median_ms": timing.median * 1e3, "p20_ms": timing.p20 * 1e3, "p80_ms": timing.p80 * 1e3, "first_ms": timing.first * 1e3,
        "graph_ms": None if timing.graph is None else timing.graph * 1e3, "calls": timing.calls, "peak_bytes": timing.peak_bytes,
        "speedup": None if base is None else base.over(timing),
    }  # fmt: skip


def times(records: list[dict[str, Any]], over: str) -> Iterator[str]:
    """Lines of Markdown for the suites of whole models; `over` is what speed-ups are over."""
    graphs = any(r.get("graph_ms") for r in records)
    yield f"| model | work | competitor | median ms | p20 .. p80 | x over {over} | first call ms |{' CUDA graph ms |' if graphs else ''}"
    yield f"|---|---|---|---|---|---|---|{'---|' if graphs else ''}"
    for r in records:
        title = f"| {r['case']} | {r['direction']} | {r['competitor']} |"
        if r["reason"]:
            yield f"{title} - | {r['reason']} | | |{' |' if graphs else ''}"
            continue
        speedup = "" if r["speedup"] is None else f"{r['speedup']:.2f}"
        graph = "" if not graphs else f" {r['graph_ms']:.2f} |" if r["graph_ms"] else " - |"
        yield f"{title} {r['median_ms']:.1f} | {r['p20_ms']:.1f} .. {r['p80_ms']:.1f} | {speedup} | {r['first_ms']:.1f} |{graph}"


def case_title(record: dict[str, Any]) -> str:
    """All that tells a case from the others."""
    shape = f"k{record['kernel_size']} b{record['batch']} h{record['heads']} {record['dtype']}"
    return f"{record['case']} {shape}{' cosine' if record['cosine'] else ''}"


def table(records: list[dict[str, Any]]) -> Iterator[str]:
    """Lines of Markdown, one case a block."""
    graphs = any(r.get("graph_ms") for r in records)
    extra = " CUDA graph ms |" if graphs else ""
    yield f"| case | direction | competitor | median ms | p20 .. p80 | x over dense | FLOP bound | time / floor | first call ms |{extra}"
    yield f"|---|---|---|---|---|---|---|---|---|{'---|' if graphs else ''}"
    for r in records:
        title = case_title(r)
        if r["reason"]:
            yield f"| {title} | {r['direction']} | {r['competitor']} | - | {r['reason']} | | | | |{' |' if graphs else ''}"
            continue
        speedup = "" if r["speedup"] is None else f"{r['speedup']:.2f}"
        graph = "" if not graphs else f" {r['graph_ms']:.3f} |" if r["graph_ms"] else " - |"
        yield (
            f"| {title} | {r['direction']} | {r['competitor']} | {r['median_ms']:.3f} | {r['p20_ms']:.3f} .. {r['p80_ms']:.3f} | {speedup} "
            f"| {r['flop_bound_speedup']:.1f} | {r['time_over_floor']:.2f} | {r['first_ms']:.1f} |{graph}"
        )


def slope(points: list[tuple[int, float]]) -> float:
    """Of log time over log tokens, least squares."""
    x, y = ([math.log(value) for value in axis] for axis in zip(*points))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y)) / sum((a - mean_x) ** 2 for a in x)


def growth(records: list[dict[str, Any]]) -> Iterator[str]:
    """Slope of log time over log tokens on single grids: 1 is O(N), 2 is O(N^2)."""
    series: dict[tuple[str, str], list[tuple[int, float]]] = defaultdict(list)
    for r in records:
        if (
            r["case"].startswith("grid")
            and r["kernel_size"] == 7
            and not r["reason"]
            and r["tokens"] >= SLOPE_TOKENS
        ):
            series[(r["direction"], r["competitor"])].append((r["tokens"], r["median_ms"] / r["batch"]))
    for (direction, name), points in sorted(series.items()):
        if len(points) < 2:
            continue
        points.sort()
        last = f"; {points[-1][0]} over {points[-2][0]} tokens: x {points[-1][1] / points[-2][1]:.2f}"
        yield f"{name}, {direction}: time ~ N^{slope(points):.2f} from {points[0][0]} to {points[-1][0]} tokens{last}"


def write(
    out: Path,
    name: str,
    facts: dict[str, Any],
    records: list[dict[str, Any]],
    lines: Iterable[str] | None = None,
) -> None:
    """NAME.csv, NAME.json and NAME.md in `out`; `lines` of Markdown, the attention suite's table and slopes unless given."""
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / f"{name}.json", json.dumps({"machine": facts, "records": records}, indent=1) + "\n")
    columns = list(dict.fromkeys(key for record in records for key in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    write_text(out / f"{name}.csv", text.getvalue())
    if lines is None:
        lines = [*table(records), "", *(f"- {each}" for each in growth(records))]
    write_text(out / f"{name}.md", f"# {name}\n\n{line(facts)}\n\n" + "\n".join(lines) + "\n")
