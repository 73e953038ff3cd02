"""The emulated suite: what the Triton kernels execute, counted on the emulated GPU of tests/emulator.

Every case is bfloat16, D 64, one batch element and one head: all others execute the same. Counts are exact
and repeatable, and say nothing of time. The estimates use those that are committed (`estimates/executed.py`).
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.core import report
from benchmarks.core.cases import Case
from benchmarks.core.report import Record, header, row
from benchmarks.estimates.executed import counted_cases, title
from benchmarks.suites.settings import Settings
from mvar_kernels.backends import AttentionCall

EMULATOR = Path(__file__).parents[2] / "tests" / "emulator"
TRITON = "3.7.1"
KERNELS = {"forward_kernel": "forward", "backward_dq": "dq", "backward_dkdv": "dkdv"}
CLASSES = (
    "integer", "float", "special", "move", "predicate", "param", "global", "async copy", "shared",
    "matrix load", "tensor", "warp",
)  # fmt: skip
# The tensors that a kernel moves; everything else is tables, which all heads share.
TENSORS = (
    "Q", "K", "V", "O", "DO", "DQ", "DK", "DV", "LSE", "LSE2", "DLSE", "DELTA", "RQ", "RK", "FACTOR",
    "DFACTOR",
)  # fmt: skip
# At 256 px: sectors over the bytes that threads want, sectors over touching each byte once, and wavefronts
# over those without bank conflicts.
MOST_SECTORS, MOST_TOUCHED, MOST_WAVEFRONTS = 1.1, {"forward": 1.6, "backward": 2.1}, 1.15


def unavailable() -> str | None:
    """Return in one line why nothing can be emulated here, or None."""
    if not EMULATOR.is_dir():
        return "needs the emulated GPU in tests/emulator of a checkout: the wheel does not hold it"
    found = importlib.metadata.version("triton") if importlib.util.find_spec("triton") else "none"
    if found != TRITON:
        return f"needs triton {TRITON}, whose PTX the emulated GPU knows; here is {found}"
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        return "needs compiled kernels: unset TRITON_INTERPRET"
    return None


def run(settings: Settings) -> list[str]:
    """Count all cases; write the results; return the lines to print."""
    if (reason := unavailable()) is not None:
        return [f"skipped: {reason}"]
    records: list[Record] = []
    for case in counted_cases()[: 1 if settings.quick else None]:
        click.echo(f"{title(case)} on sm_{settings.capability} ...", err=True)
        records += count(case, settings.capability)
    lines = [*tables(records), "", *(f"- {line}" for line in targets(records))]
    report.write(settings.out, "emulated", settings.facts, records, lines)
    return lines


def count(case: Case, capability: int) -> list[Record]:
    """Execute forward and backward of a case, and return a record per kernel.

    Args:
        case: what to execute; its batch and heads are multiplied into the counts.
        capability: 80 or 90.
    """
    if str(EMULATOR) not in sys.path:
        sys.path.insert(0, str(EMULATOR))
    emulated_gpu = importlib.import_module("emulated_gpu.mvar_backend")
    backend = importlib.import_module("mvar_kernels.dispatch").load("triton")
    query, key, value, logit_scale, grad = case.inputs(torch.device("cpu"))
    # Packed together, the three would count as one tensor.
    query, key, value = (tensor.contiguous() for tensor in (query, key, value))
    scale = 1.0 if case.cosine else case.head_dim**-0.5
    with emulated_gpu.emulated(capability, unit_warps=0) as gpu:
        gpu.counts = True
        call = AttentionCall(query, key, value, logit_scale, case.neighborhood, scale)
        out, lse = backend.forward(call)
        backend.backward(call, out, lse, grad, None)
    return [_record(case, capability, each) for each in gpu.launches if each.kernel in KERNELS]


def _record(case: Case, capability: int, launch: Any) -> Record:
    counters = launch.counters
    traffic, shared, executed = counters.traffic, counters.shared, counters.instructions
    tensors = {name: each for name, each in traffic.items() if name in TENSORS}
    worst = next((each for each in shared if each.passes > each.ideal), None)
    return {
        "case": title(case),
        "kernel": KERNELS[launch.kernel],
        "target": f"sm_{capability}",
        "programs": launch.programs,
        "instructions": sum(executed.values()),
        **{name: executed[name] for name in CLASSES},
        "requested_bytes": sum(each.requested for each in traffic.values()),
        "sectors": sum(each.sectors for each in traffic.values()),
        "coalesced_sectors": sum(each.ideal for each in traffic.values()),
        "touched_bytes": sum(each.touched for each in traffic.values()),
        "tensor_bytes": sum(each.touched for each in tensors.values()),
        "tensor_sectors": {name: each.sectors for name, each in tensors.items()},
        "tensor_touched": {name: each.touched for name, each in tensors.items()},
        "table_touched": {name: each.touched for name, each in traffic.items() if name not in TENSORS},
        "table_sectors": sum(each.sectors for name, each in traffic.items() if name not in TENSORS),
        "wavefronts": sum(each.passes for each in shared),
        "conflict_free": sum(each.ideal for each in shared),
        "worst_conflict": f"{worst.instruction.op} {worst.passes / worst.ideal:.2f}" if worst else "",
        "operand_bytes": counters.operand_bytes,
        "tensor_flops": counters.flops,
        "bytes_in_flight": counters.bytes_in_flight,
    }


def tables(records: list[Record]) -> Iterator[str]:
    """Yield two Markdown tables: warp instructions by class, and memory and tensor cores."""
    yield from header(["case", "kernel", "programs", "warp instructions of PTX", *CLASSES])
    for r in records:
        counts = [f"{r[name]:,}" for name in ("programs", "instructions", *CLASSES)]
        yield row([r["case"], r["kernel"], *counts])
    yield ""
    titles = ["case", "kernel", "sectors / bytes wanted", "sectors / coalesced", "/ touched once, one head"]
    titles += ["/ touched once, many heads", "of them tables", "times each tensor is read or written"]
    titles += [
        "wavefronts",
        "/ conflict-free",
        "worst",
        "wgmma operands, KB",
        "tensor MFLOP",
        "bytes in flight",
    ]
    yield from header(titles)
    for r in records:
        moved = r["sectors"] * 32
        yield row(
            [
                r["case"],
                r["kernel"],
                f"{moved / r['requested_bytes']:.2f}",
                f"{r['sectors'] / r['coalesced_sectors']:.3f}",
                f"{moved / r['touched_bytes']:.2f}",
                f"{moved / r['tensor_bytes']:.2f}",
                f"{r['table_sectors'] / r['sectors']:.0%}",
                ", ".join(
                    f"{name} {sectors * 32 / r['tensor_touched'][name]:.2f}"
                    for name, sectors in r["tensor_sectors"].items()
                ),
                f"{r['wavefronts']:,}",
                f"{r['wavefronts'] / r['conflict_free']:.3f}",
                r["worst_conflict"] or "-",
                f"{r['operand_bytes'] / 1e3:,.0f}",
                f"{r['tensor_flops'] / 1e6:,.1f}",
                f"{r['bytes_in_flight']:,}",
            ]
        )


def targets(records: list[Record]) -> Iterator[str]:
    """Yield a line per target of the 256 px pyramid: the worst kernel, or the sum of one direction."""
    mine = [r for r in records if r["case"] == "pyramid 256px"]
    if not mine:
        return
    wanted = max(r["sectors"] * 32 / r["requested_bytes"] for r in mine)
    coalesced = max(r["sectors"] / r["coalesced_sectors"] for r in mine)
    yield _line(
        max(wanted, coalesced) <= MOST_SECTORS,
        f"256 px: {wanted:.2f} x the sectors of the bytes wanted, {coalesced:.3f} x those of them coalesced",
        MOST_SECTORS,
    )
    for direction, names in (("forward", ("forward",)), ("backward", ("dq", "dkdv"))):
        chosen = [r for r in mine if r["kernel"] in names]
        moved = sum(r["sectors"] * 32 for r in chosen)
        # What both kernels of the backward pass touch counts once; their tables differ.
        once = sum({name: size for r in chosen for name, size in r["tensor_touched"].items()}.values())
        with_tables = once + sum(sum(r["table_touched"].values()) for r in chosen)
        text = f"{moved / with_tables:.2f} x touching each byte once with one head"
        yield _line(
            moved / with_tables <= MOST_TOUCHED[direction],
            f"256 px, {direction}: sectors are {text}, {moved / once:.2f} x where many heads share tables",
            MOST_TOUCHED[direction],
        )
    conflicts = max(r["wavefronts"] / r["conflict_free"] for r in mine)
    yield _line(
        conflicts <= MOST_WAVEFRONTS,
        f"256 px: {conflicts:.3f} x the wavefronts that are free of bank conflicts",
        MOST_WAVEFRONTS,
    )


def _line(reached: bool, text: str, most: float) -> str:
    return f"[{'reached' if reached else 'MISSED'}] {text} (at most {most:g})"
