"""The memory suite: what autograd holds a picture, peaks of training steps and of drawing pictures in fresh processes, and the paper's Table 2."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.core import phases as fresh
from benchmarks.core.child_jobs import WAYS, cache_bytes, loss_of, nbytes, shape_of
from benchmarks.core.shapes import KINDS, Shape, tokenizer
from benchmarks.estimates import published
from benchmarks.estimates.activations import Held, a_picture, blank, fake

_ARCHS = ("var", "mvar")
_GUIDANCE = {"guidance_scale": 1.5, "top_k": 900, "top_p": 0.96}  # VAR's preset for both


def counted(shape: Shape, arch: str, way: str) -> Held:
    """Of a model that need not exist."""
    with fake():
        model = blank(KINDS[arch][0], shape.config(arch))
        return a_picture(model, loss_of(model, way, shape.dtype), shape.dtype)


def activation_records(quick: bool) -> list[dict[str, Any]]:
    """d16 at 256 px every way; larger ones as MVAR alone, as VAR holds the same."""
    released = Shape(16, dtype=torch.bfloat16)
    wanted = [(released, arch, way) for arch in _ARCHS for way in WAYS]
    if not quick:
        more = [Shape(16, pixels, dtype=torch.bfloat16) for pixels in ("512px", "1024px")] + [
            Shape(d, dtype=torch.bfloat16) for d in (20, 24, 30)
        ]
        wanted += [(shape, "mvar", way) for shape in more for way in WAYS[1:]]
    records = []
    for shape, arch, way in wanted:
        held = counted(shape, arch, way)
        records.append(
            {
                "kind": "activations",
                "case": shape.name,
                "arch": arch,
                "way": way,
                "bytes": held.bytes,
                "parts": dict(held.parts),
            }
        )
    return records


def checked(record: dict[str, Any], device: torch.device, **shape: Any) -> dict[str, Any]:
    """The same count on real tensors, in a fresh process."""
    found = fresh.run("count", arch=record["arch"], way=record["way"], device=device.type, **shape)
    return {
        **record,
        "kind": "activations, real tensors",
        "bytes": found["bytes"],
        "counted_bytes": record["bytes"],
    }


def peak_records(
    device: torch.device, train: dict[str, Any], draw: dict[str, Any], ways: tuple[str, ...] = WAYS[1:]
) -> Iterator[dict[str, Any]]:
    """Measured peaks, each in a process of its own; `train` and `draw` are shapes."""
    for arch in _ARCHS:
        for way in ways:
            found = fresh.run("train", arch=arch, way=way, device=device.type, **train)
            yield {"kind": "training step", "case": shape_of(**train).name, "arch": arch, "way": way, **found}
    shape = shape_of(**{name: value for name, value in draw.items() if name != "channels"})
    for arch in _ARCHS:
        found = fresh.run("draw", arch=arch, device=device.type, **_GUIDANCE, **draw)
        cache = cache_bytes(shape, guided=True) if arch == "var" else 0
        yield {"kind": "drawing", "case": shape.name, "arch": arch, "way": "ours", "cache": cache, **found}


def table_two(activations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    shape, one = Shape(16, batch=published.BATCH, dtype=torch.bfloat16), Shape(16, dtype=torch.bfloat16)
    held = {
        (r["arch"], r["way"]): r["bytes"]
        for r in activations
        if r["case"] == one.name and r["kind"] == "activations"
    }
    with fake():
        model, vqvae = blank(KINDS["var"][0], shape.config("var")), tokenizer(shape)
        parameters, weights = sum(p.numel() for p in model.parameters()), nbytes(model, vqvae)
    caches = {
        name: cache_bytes(shape_of(16, "256px", published.BATCH, name), guided=True)
        for name in ("bfloat16", "float32")
    }
    return [
        {"kind": "table 2", "case": shape.name, **r}
        for r in (*published.training(parameters, held), *published.sampling(weights, caches))
    ]


def lines(records: list[dict[str, Any]]) -> Iterator[str]:
    """Tables of what there is."""
    activations = [r for r in records if r["kind"] == "activations"]
    plain = {(r["case"], r["arch"]): r["bytes"] for r in activations if r["way"] == "plain"}
    yield "Held for backward, MB a picture (batch 3 less batch 1, halved), counted on fake tensors; bfloat16 autocast."
    yield ""
    yield "| model | as | MB a picture | x of plain | largest parts, MB |"
    yield "|---|---|---|---|---|"
    for r in activations:
        largest = sorted(r["parts"].items(), key=lambda part: -part[1])[:5]
        parts = "; ".join(f"{name} {size / 1e6:.0f}" for name, size in largest)
        share = r["bytes"] / plain[(r["case"], r["arch"])]
        yield f"| {r['arch'].upper()} {r['case']} | {r['way']} | {r['bytes'] / 1e6:.1f} | {share:.2f} | {parts} |"
    for r in records:
        if r["kind"] == "activations, real tensors":
            same = (
                "the same"
                if r["bytes"] == r["counted_bytes"]
                else f"DIFFERENT from {r['counted_bytes'] / 1e6:.1f}"
            )
            yield f"\n{r['arch'].upper()} {r['case']}, {r['way']}, counted on real tensors: {r['bytes'] / 1e6:.1f} MB, {same}."
    yield from _peaks(
        [r for r in records if r["kind"] == "training step"], [r for r in records if r["kind"] == "drawing"]
    )
    yield ""
    yield from published.lines([r for r in records if r["kind"] == "table 2"])


def _peaks(steps: list[dict[str, Any]], draws: list[dict[str, Any]]) -> Iterator[str]:
    if steps:
        yield ""
        yield "| training step | as | peak MB | weights MB | gradients and moments MB | the rest MB | s a step |"
        yield "|---|---|---|---|---|---|---|"
        for r in steps:
            weights, peak = r["weights"] / 1e6, r["peak_bytes"] / 1e6
            yield (
                f"| {r['arch'].upper()} {r['case']} | {r['way']} | {peak:,.0f} | {weights:,.0f} | {3 * weights:,.0f} | {peak - 4 * weights:,.0f} "
                f"| {r['seconds']['step']:.1f} |"
            )
    if draws:
        yield ""
        yield "| drawing, with guidance | peak MB | weights MB | VQVAE MB | cache MB | codes' peak MB | decoder's peak MB | s, codes | s, decoder |"
        yield "|---|---|---|---|---|---|---|---|---|"
        for r in draws:
            peaks, seconds = r["peaks"], r["seconds"]
            sizes = (
                r["peak_bytes"],
                r["weights"],
                r["vqvae"],
                r["cache"],
                max(peaks["earlier scales"], peaks["last scale"]),
                peaks["decoder"],
            )
            shown = " | ".join(f"{size / 1e6:,.0f}" for size in sizes)
            took = f"{seconds['earlier scales'] + seconds['last scale']:.1f} | {seconds['decoder']:.1f}"
            yield f"| {r['arch'].upper()} {r['case']} | {shown} | {took} |"
        by_arch = {r["arch"]: r for r in draws}
        if len(by_arch) < len(_ARCHS):  # a run that was stopped
            return
        ratio = by_arch["mvar"]["peak_bytes"] / by_arch["var"]["peak_bytes"]
        saved = by_arch["var"]["peak_bytes"] - by_arch["mvar"]["peak_bytes"]
        yield f"\nMVAR's peak is {ratio:.2f} of VAR's; {saved / 1e6:,.0f} MB less, and the cache is {by_arch['var']['cache'] / 1e6:,.0f} MB."


def run(device: torch.device, quick: bool) -> Iterator[list[dict[str, Any]]]:
    """All records so far, after each measurement; quick counts, and measures a model of two blocks."""
    records = activation_records(quick)
    records += table_two(records)
    yield records
    depth = {"depth": 2, "width": 1024} if quick else {"depth": 16}
    train = {**depth, "pixels": "256px", "batch": 32 if device.type == "cuda" else 2, "dtype": "bfloat16"}
    draw = {**depth, "pixels": "256px", "batch": 32 if device.type == "cuda" else 8, "dtype": "bfloat16"}
    if not quick:
        first = next(r for r in records if r.get("way") == "ours" and r["arch"] == "var")
        records.append(checked(first, device, depth=16, pixels="256px", batch=1, dtype="bfloat16"))
    for record in peak_records(device, train, draw):
        records.append(record)
        yield records
