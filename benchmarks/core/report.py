"""Write results as CSV, JSON and Markdown; the time columns and table that the suites share."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.core import machine
from benchmarks.core.measure import Timing
from mvar_models.files import write_text

Record = dict[str, Any]


def timing_columns(timing: Timing | None, base: Timing | None) -> Record:
    """Return a timing's columns in milliseconds, none without one; `speedup` is over `base`."""
    if timing is None:
        return {}
    return {
        "median_ms": timing.median * 1e3,
        "p20_ms": timing.p20 * 1e3,
        "p80_ms": timing.p80 * 1e3,
        "first_ms": timing.first * 1e3,
        "graph_ms": None if timing.graph is None else timing.graph * 1e3,
        "calls": timing.calls,
        "peak_bytes": timing.peak_bytes,
        "speedup": None if base is None else base.over(timing),
    }


def times_table(records: list[Record], base: str) -> Iterator[str]:
    """Yield the Markdown table of a model suite; `base` names the competitor that speed-ups are over."""
    titles = ["model", "work", "competitor", "median ms", "p20 .. p80", f"x over {base}", "first call ms"]
    graphs = any(r.get("graph_ms") for r in records)
    yield from header([*titles, *(["CUDA graph ms"] if graphs else [])])
    for r in records:
        cells = [r["case"], r["direction"], r["competitor"]]
        if r["reason"]:
            cells += ["-", r["reason"], "", ""]
        else:
            spread = f"{r['p20_ms']:.1f} .. {r['p80_ms']:.1f}"
            speedup = "" if r["speedup"] is None else f"{r['speedup']:.2f}"
            cells += [f"{r['median_ms']:.1f}", spread, speedup, f"{r['first_ms']:.1f}"]
        yield row([*cells, *([graph_cell(r, 2)] if graphs else [])])


def graph_cell(record: Record, digits: int) -> str:
    """Return the CUDA graph's milliseconds; "-" where it could not be captured, nothing where nothing ran."""
    if record["reason"]:
        return ""
    return f"{record['graph_ms']:.{digits}f}" if record["graph_ms"] else "-"


def header(titles: list[str]) -> Iterator[str]:
    """Yield the two header lines of a Markdown table."""
    yield row(titles)
    yield f"|{'---|' * len(titles)}"


def row(cells: list[str]) -> str:
    """Return one line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def write(out: Path, name: str, facts: Record, records: list[Record], lines: Iterable[str]) -> None:
    """Write NAME.csv, NAME.json and NAME.md.

    Args:
        out: Folder, created if needed.
        name: The suite's name.
        facts: `machine.describe`, stated in every file but the CSV.
        records: One dictionary per row.
        lines: Markdown below the machine's line.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / f"{name}.json", json.dumps({"machine": facts, "records": records}, indent=1) + "\n")
    columns = list(dict.fromkeys(key for record in records for key in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    write_text(out / f"{name}.csv", text.getvalue())
    write_text(out / f"{name}.md", f"# {name}\n\n{machine.line(facts)}\n\n" + "\n".join(lines) + "\n")
