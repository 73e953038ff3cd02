"""The memory suite: bytes held for backward, peaks of training steps and sampling, and the paper's Table 2.

Bytes held are counted on fake tensors; peaks are measured in fresh processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
import torch

from benchmarks.core import machine, plots, report
from benchmarks.core.activations import Held, blank, fake, held_per_image
from benchmarks.core.report import Record, header, row
from benchmarks.core.shapes import ARCHITECTURES, Shape, tokenizer
from benchmarks.peers.plain_pytorch import WAYS, loss_of
from benchmarks.suites import paper_memory
from benchmarks.suites.memory_jobs import cache_bytes, nbytes, run_fresh
from benchmarks.suites.settings import Settings, written
from mvar_models.registry import architecture

# VAR's preset, for both architectures.
_SAMPLING = {"guidance_scale": 1.5, "top_k": 900, "top_p": 0.96}


def run(settings: Settings) -> list[str]:
    """Count, then measure; write the results each time, so that a stopped run keeps what it measured."""
    click.echo("counting, then fresh processes ...", err=True)
    for records in measure_memory(settings.device, settings.quick):
        lines = list(tables(records))
        report.write(settings.out, "memory", settings.facts, records, lines)
    title = machine.line(settings.facts)
    images = plots.save(plots.memory_figure(records), settings.out / "memory.png", title)
    return [*lines, written(settings.out, "memory", images)]


def measure_memory(device: torch.device, quick: bool) -> Iterator[list[Record]]:
    """Yield all records so far after each measurement; `quick` measures a model of two blocks."""
    records = activation_records(quick)
    records += table_two(records)
    yield records
    on_gpu = device.type == "cuda"
    size = {"depth": 2, "width": 1024} if quick else {"depth": 16}
    train = {**size, "pixels": "256px", "batch": 32 if on_gpu else 2, "dtype": "bfloat16"}
    draw = {**size, "pixels": "256px", "batch": 32 if on_gpu else 8, "dtype": "bfloat16"}
    if not quick:
        first = next(r for r in records if r.get("way") == "ours" and r["arch"] == "var")
        records.append(recounted(first, device, depth=16, pixels="256px", batch=1, dtype="bfloat16"))
    for record in peak_records(device, train, draw):
        records.append(record)
        yield records


def counted(shape: Shape, arch: str, way: str) -> Held:
    """Count what one image holds for backward, on fake tensors."""
    with fake():
        model = blank(architecture(arch).network_class(), shape.config(arch))
        return held_per_image(model, loss_of(model, way, shape.dtype), shape.dtype)


def activation_records(quick: bool) -> list[Record]:
    """Count d16 at 256 px in every way; larger shapes as MVAR alone, because VAR holds the same."""
    released = Shape(16, dtype=torch.bfloat16)
    wanted = [(released, arch, way) for arch in ARCHITECTURES for way in WAYS]
    if not quick:
        larger = [Shape(16, pixels, dtype=torch.bfloat16) for pixels in ("512px", "1024px")]
        larger += [Shape(depth, dtype=torch.bfloat16) for depth in (20, 24, 30)]
        wanted += [(shape, "mvar", way) for shape in larger for way in WAYS[1:]]
    records = []
    for shape, arch, way in wanted:
        held = counted(shape, arch, way)
        record = {"kind": "activations", "case": shape.name, "arch": arch, "way": way}
        records.append({**record, "bytes": held.bytes, "parts": dict(held.parts)})
    return records


def recounted(record: Record, device: torch.device, **shape: Any) -> Record:
    """Repeat a count on real tensors, in a fresh process."""
    answer = run_fresh("count", arch=record["arch"], way=record["way"], device=device.type, **shape)
    return {
        **record,
        "kind": "activations, real tensors",
        "bytes": answer["bytes"],
        "counted_bytes": record["bytes"],
    }


def peak_records(
    device: torch.device, train: Record, draw: Record, ways: tuple[str, ...] = WAYS[1:]
) -> Iterator[Record]:
    """Measure peaks, each in a process of its own.

    Args:
        device: Where to run.
        train, draw: Shapes of training steps and of sampling, as JSON values of `Shape`.
        ways: How to train.
    """
    case = Shape.from_json(**train).name
    for arch in ARCHITECTURES:
        for way in ways:
            answer = run_fresh("train", arch=arch, way=way, device=device.type, **train)
            yield {"kind": "training step", "case": case, "arch": arch, "way": way, **answer}
    shape = Shape.from_json(**{name: value for name, value in draw.items() if name != "channels"})
    for arch in ARCHITECTURES:
        answer = run_fresh("draw", arch=arch, device=device.type, **_SAMPLING, **draw)
        cache = cache_bytes(shape, guided=True) if arch == "var" else 0
        yield {"kind": "drawing", "case": shape.name, "arch": arch, "way": "ours", "cache": cache, **answer}


def table_two(activations: list[Record]) -> list[Record]:
    """Return the paper's Table 2 with counted figures for the same settings."""
    one_image = Shape(16, dtype=torch.bfloat16)
    shape = Shape(16, batch=paper_memory.BATCH, dtype=torch.bfloat16)
    held = {
        (r["arch"], r["way"]): r["bytes"]
        for r in activations
        if r["case"] == one_image.name and r["kind"] == "activations"
    }
    with fake():
        model = blank(architecture("var").network_class(), shape.config("var"))
        weights = nbytes(model, tokenizer(shape))
        parameters = sum(parameter.numel() for parameter in model.parameters())
    caches = {
        str(dtype).removeprefix("torch."): cache_bytes(
            Shape(16, batch=paper_memory.BATCH, dtype=dtype), guided=True, released=True
        )
        for dtype in (torch.bfloat16, torch.float32)
    }
    rows = [*paper_memory.training(parameters, held), *paper_memory.sampling(weights, caches)]
    return [{"kind": "table 2", "case": shape.name, **r} for r in rows]


def tables(records: list[Record]) -> Iterator[str]:
    """Yield the Markdown tables of what has been measured so far."""
    by_kind = {
        kind: [r for r in records if r["kind"] == kind] for kind in dict.fromkeys(r["kind"] for r in records)
    }
    yield from _activation_lines(by_kind.get("activations", []))
    for r in by_kind.get("activations, real tensors", []):
        same = r["bytes"] == r["counted_bytes"]
        verdict = "the same" if same else f"DIFFERENT from {r['counted_bytes'] / 1e6:.1f}"
        title = f"{r['arch'].upper()} {r['case']}, {r['way']}"
        yield f"\n{title}, counted on real tensors: {r['bytes'] / 1e6:.1f} MB, {verdict}."
    if steps := by_kind.get("training step"):
        yield from _step_lines(steps)
    if draws := by_kind.get("drawing"):
        yield from _sampling_lines(draws)
    yield ""
    yield from paper_memory.lines(by_kind.get("table 2", []))


def _activation_lines(records: list[Record]) -> Iterator[str]:
    plain = {(r["case"], r["arch"]): r["bytes"] for r in records if r["way"] == "plain"}
    yield (
        "Held for backward, MB per image (batch 3 minus batch 1, halved), counted on fake tensors; "
        "bfloat16 autocast."
    )
    yield ""
    yield from header(["model", "as", "MB per image", "x of plain", "largest parts, MB"])
    for r in records:
        largest = sorted(r["parts"].items(), key=lambda part: -part[1])[:5]
        parts = "; ".join(f"{name} {size / 1e6:.0f}" for name, size in largest)
        share = r["bytes"] / plain[(r["case"], r["arch"])]
        title = f"{r['arch'].upper()} {r['case']}"
        yield row([title, r["way"], f"{r['bytes'] / 1e6:.1f}", f"{share:.2f}", parts])


def _step_lines(steps: list[Record]) -> Iterator[str]:
    yield ""
    titles = ["training step", "as", "peak MB", "weights MB", "gradients and moments MB", "the rest MB"]
    yield from header([*titles, "s per step"])
    for r in steps:
        weights, peak = r["weights"] / 1e6, r["peak_bytes"] / 1e6
        sizes = (peak, weights, 3 * weights, peak - 4 * weights)
        cells = [f"{r['arch'].upper()} {r['case']}", r["way"], *(f"{size:,.0f}" for size in sizes)]
        yield row([*cells, f"{r['seconds']['step']:.1f}"])


def _sampling_lines(draws: list[Record]) -> Iterator[str]:
    yield ""
    titles = ["sampling, with guidance", "peak MB", "weights MB", "VQVAE MB", "cache MB", "codes' peak MB"]
    yield from header([*titles, "decoder's peak MB", "s, codes", "s, decoder"])
    for r in draws:
        peaks, seconds = r["peaks"], r["seconds"]
        codes_peak = max(peaks["earlier scales"], peaks["last scale"])
        sizes = (r["peak_bytes"], r["weights"], r["vqvae"], r["cache"], codes_peak, peaks["decoder"])
        took = (seconds["earlier scales"] + seconds["last scale"], seconds["decoder"])
        cells = [f"{r['arch'].upper()} {r['case']}", *(f"{size / 1e6:,.0f}" for size in sizes)]
        yield row([*cells, *(f"{value:.1f}" for value in took)])
    by_arch = {r["arch"]: r for r in draws}
    if len(by_arch) < len(ARCHITECTURES):  # the run was stopped in between
        return
    var, mvar = by_arch["var"], by_arch["mvar"]
    ratio = mvar["peak_bytes"] / var["peak_bytes"]
    saved, cache = (var["peak_bytes"] - mvar["peak_bytes"]) / 1e6, var["cache"] / 1e6
    yield f"\nMVAR's peak is {ratio:.2f} of VAR's; {saved:,.0f} MB less, and the cache is {cache:,.0f} MB."
