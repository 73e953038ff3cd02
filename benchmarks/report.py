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

from benchmarks.attention import Result
from benchmarks.baselines import REFERENCE
from benchmarks.machine import line
from mvar_models.checkpoints import write_text


def rows(results: Iterable[Result]) -> list[dict[str, Any]]:
    """One flat record a result; times in milliseconds."""
    results = list(results)
    dense = {r.case: r.timing.median for r in results if r.name == REFERENCE and r.timing}
    out = []
    for r in results:
        case, timing = r.case, r.timing
        record: dict[str, Any] = {
            "case": case.name, "kernel_size": case.kernel_size, "tokens": case.tokens, "batch": case.batch, "heads": case.heads,
            "head_dim": case.head_dim, "dtype": str(case.dtype).removeprefix("torch."), "cosine": case.cosine, "direction": case.direction,
            "competitor": r.name, "reason": r.reason,
        }  # fmt: skip
        if timing is not None:
            record |= {
                "median_ms": timing.median * 1e3, "p20_ms": timing.p20 * 1e3, "p80_ms": timing.p80 * 1e3, "first_ms": timing.first * 1e3,
                "prepared_ms": r.prepared * 1e3, "calls": timing.calls, "peak_bytes": timing.peak_bytes, "error": r.error,
                "attended_pairs": case.attended_pairs, "useful_gflops": case.flops / timing.median / 1e9,
                "gb_per_s": case.least_bytes / timing.median / 1e9, "time_over_floor": r.time_over_floor,
                "speedup": dense[case] / timing.median if case in dense else None,
                "flop_bound_speedup": case.tokens**2 / case.attended_pairs,
            }  # fmt: skip
        out.append(record)
    return out


def table(records: list[dict[str, Any]]) -> Iterator[str]:
    """Lines of Markdown, one case a block."""
    yield "| case | direction | competitor | median ms | p20 .. p80 | x over dense | FLOP bound | time / floor | first call ms |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for r in records:
        title = f"{r['case']} k{r['kernel_size']} b{r['batch']} h{r['heads']} {r['dtype']}{' cosine' if r['cosine'] else ''}"
        if r["reason"]:
            yield f"| {title} | {r['direction']} | {r['competitor']} | - | {r['reason']} | | | | |"
            continue
        speedup = "" if r["speedup"] is None else f"{r['speedup']:.2f}"
        yield (
            f"| {title} | {r['direction']} | {r['competitor']} | {r['median_ms']:.3f} | {r['p20_ms']:.3f} .. {r['p80_ms']:.3f} | {speedup} "
            f"| {r['flop_bound_speedup']:.1f} | {r['time_over_floor']:.2f} | {r['first_ms']:.1f} |"
        )


def growth(records: list[dict[str, Any]]) -> Iterator[str]:
    """Slope of log time over log tokens on single grids: 1 is O(N), 2 is O(N^2)."""
    series: dict[tuple[str, str], list[tuple[int, float]]] = defaultdict(list)
    for r in records:
        if r["case"].startswith("grid") and r["kernel_size"] == 7 and not r["reason"] and r["tokens"] >= 256:
            series[(r["direction"], r["competitor"])].append((r["tokens"], r["median_ms"] / r["batch"]))
    for (direction, name), points in sorted(series.items()):
        if len(points) < 2:
            continue
        points.sort()
        x, y = ([math.log(value) for value in axis] for axis in zip(*points))
        mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
        slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y)) / sum((a - mean_x) ** 2 for a in x)
        last = f"; {points[-1][0]} over {points[-2][0]} tokens: x {points[-1][1] / points[-2][1]:.2f}"
        yield f"{name}, {direction}: time ~ N^{slope:.2f} from {points[0][0]} to {points[-1][0]} tokens{last}"


def write(out: Path, name: str, facts: dict[str, Any], records: list[dict[str, Any]]) -> None:
    """NAME.csv, NAME.json and NAME.md in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / f"{name}.json", json.dumps({"machine": facts, "records": records}, indent=1) + "\n")
    columns = list(dict.fromkeys(key for record in records for key in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    write_text(out / f"{name}.csv", text.getvalue())
    slopes = "\n".join(f"- {each}" for each in growth(records))
    write_text(out / f"{name}.md", f"# {name}\n\n{line(facts)}\n\n" + "\n".join(table(records)) + f"\n\n{slopes}\n")
