"""The engine suite: the loop over scales against a plain one, in counts and in time, and the decoder apart.

Counts come from meta tensors, so they are those of a GPU and of the full models: kernels per image, bytes of
weights that are read, bytes of VAR's cache. Times are of random weights on this machine. The plain loop
(`benchmarks/peers/plain_loop.py`) draws the same codes; it computes everything at every scale, as the
released programs do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import click
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.core import report
from benchmarks.core.activations import blank
from benchmarks.core.measure import measure
from benchmarks.core.report import Record
from benchmarks.core.shapes import Shape, tokenizer
from benchmarks.core.trace import Trace, live_bytes, trace
from benchmarks.peers.plain_loop import plain_sample
from benchmarks.suites.settings import Settings, written
from mvar_models.networks.state import KVCache
from mvar_models.networks.vqvae import VQVAE
from mvar_models.pipeline import pipeline_for
from mvar_models.randomness import UniformNumbers
from mvar_models.registry import architecture
from mvar_models.sampling.sampler import sample
from mvar_models.sampling.settings import SamplingSettings

_SETTINGS = SamplingSettings(guidance_scale=1.5, top_k=900, top_p=0.96)
# Operators whose time is products, convolutions or attention.
_WORK = ("mm", "conv", "attention", "linear", "bmm", "gemm")
_CACHES = (Shape(16), Shape(30), Shape(16, "512px"))


def run(settings: Settings) -> list[str]:
    """Count and time, write the results after each part, and return the table."""
    records: list[Record] = []
    parts: list[Callable[[], Iterator[Record]]] = [
        *(lambda arch=arch: counts(Shape(16, dtype=torch.bfloat16), arch) for arch in ("mvar", "var")),
        *(lambda shape=shape: caches(shape) for shape in _CACHES),
        *(lambda name=name: digits(name, settings) for name in ("mvar-digits", "var-digits")),
        *(lambda shape=shape: times(shape, settings) for shape in shapes(settings)),
        lambda: remainder(shapes(settings)[0], settings),
    ]
    lines: list[str] = []
    for part in parts:
        for record in part():
            click.echo(f"{record['case']}, {record['what']} ...", err=True)
            records.append(record)
        lines = table(records)
        report.write(settings.out, "engine", settings.facts, records, lines)
    return [*lines, written(settings.out, "engine", [])]


def shapes(settings: Settings) -> list[Shape]:
    """List the shapes to time."""
    depth = 2 if settings.quick else 16
    return [Shape(depth, width=1024, batch=batch, dtype=torch.bfloat16) for batch in (1, 8)]


def record(case: str, what: str, plain: float | None, ours: float, unit: str) -> Record:
    """Return one row; `plain` is None where the two do the same."""
    ratio = None if not plain else round(ours / plain, 4)
    return {"case": case, "what": what, "plain": plain, "engine": ours, "ratio": ratio, "unit": unit}


def counts(shape: Shape, arch: str) -> Iterator[Record]:
    """Count kernels and bytes of weights per image, with guidance."""
    (plain, ours), config = traces(shape, arch), shape.config(arch)
    case = f"{config.model_type}, {shape.name}"
    yield record(case, "kernels per image, codes", plain.kernels.total(), ours.kernels.total(), "")
    yield record(case, "weights read per image", plain.weight_bytes / 1e9, ours.weight_bytes / 1e9, "GB")
    yield record(case, "copies from the host per image", len(plain.copies), len(ours.copies), "")


def traces(shape: Shape, arch: str) -> tuple[Trace, Trace]:
    """Trace the plain loop and ours on meta tensors, which have shapes and no values.

    They stand for a GPU: what reads a value of theirs fails, and what comes from the host is on the CPU.
    """
    config = shape.config(arch)
    with torch.device("meta"):
        model = blank(architecture(arch).network_class(), config).to(shape.dtype).eval()
        quantizer = tokenizer(shape, channels=32).quantizer.to(shape.dtype)
        labels = torch.empty(shape.batch, dtype=torch.int64)
        numbers = UniformNumbers.of_tensor(torch.empty(shape.batch, config.length), model.pyramid)
    generators = [torch.Generator() for _ in range(shape.batch)]
    plain = trace(lambda: plain_sample(model, quantizer, labels, generators, _SETTINGS), model.parameters())
    ours = trace(
        lambda: sample(model, quantizer, labels, numbers, _SETTINGS, keep_logits=False), model.parameters()
    )
    return plain, ours


def caches(shape: Shape) -> Iterator[Record]:
    """Count the memory of VAR's keys and values for one guided image."""
    config = shape.config("var")
    plain = cache_bytes(shape, KVCache())
    ours = cache_bytes(shape, KVCache(length=config.length, last=config.sides[-1] ** 2))
    what = ("held between scales", "allocated between scales", "allocated at the peak")
    for name, before, after in zip(what, plain, ours):
        yield record(f"VAR, {shape.name}", f"keys and values {name}", before / 2**20, after / 2**20, "MiB")


def cache_bytes(shape: Shape, cache: KVCache) -> tuple[int, int, int]:
    """Return the most bytes of entries after a scale, of memory after a scale, and of memory at any time."""
    config, rows, held = shape.config("var"), 2 * shape.batch, []

    def step(side: int) -> None:
        for block in range(config.depth):
            cache.extend(block, *keys[side])
        held.append(sum(each.nbytes for pair in cache.entries.values() for each in pair))

    with torch.no_grad(), torch.device("meta"):
        keys = {
            side: torch.empty(2, rows, side * side, config.num_heads, config.head_dim, dtype=shape.dtype)
            for side in config.sides
        }
        peak, left = live_bytes([lambda side=side: step(side) for side in config.sides])
    return max(held), max(left), peak


def digits(name: str, settings: Settings) -> Iterator[Record]:
    """Time 64 digits of an embedded model, codes and decoder apart."""
    pipeline = pipeline_for(name)
    pipeline.to(settings.device)
    labels = torch.arange(64, device=settings.device) % 10
    model, case = pipeline.model, f"{name}, batch 64, float32"
    yield from _times(case, model, pipeline.vqvae, labels, SamplingSettings.of(model.config), settings)


def times(shape: Shape, settings: Settings) -> Iterator[Record]:
    """Time a batch of random weights, codes and decoder apart."""
    model = shape.build("mvar", settings.device).to(shape.dtype).eval()
    vqvae = _vqvae(shape, settings)
    labels = torch.arange(shape.batch, device=settings.device)
    yield from _times(f"mvar, {shape.name}", model, vqvae, labels, _SETTINGS, settings)


def _times(case, model, vqvae, labels, options, settings) -> Iterator[Record]:  # type: ignore[no-untyped-def]
    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(index) for index in range(len(labels))]

    runs: dict[str, Callable[[], object]] = {
        "plain": lambda: plain_sample(model, vqvae.quantizer, labels, generators(), options),
        "engine": lambda: sample(model, vqvae.quantizer, labels, generators(), options, keep_logits=False),
    }
    timed = measure(runs, settings.device, settings.seconds, least_calls=2)
    yield record(case, "codes", timed["plain"].median, timed["engine"].median, "s")
    f_hat = torch.randn(len(labels), *_latent(vqvae), device=settings.device)
    with torch.no_grad():
        decoder = measure(
            {"decoder": lambda: list(vqvae.decode_slices(f_hat))}, settings.device, settings.seconds, 2
        )
    yield record(case, "decoder", None, decoder["decoder"].median, "s")


def _vqvae(shape: Shape, settings: Settings) -> VQVAE:
    """Return a VQVAE in the shape's type, whose decoder is float32 on a CPU; see the sampling suite."""
    vqvae = tokenizer(shape, channels=32 if settings.quick else 160).to(settings.device, shape.dtype)
    if settings.device.type == "cpu":
        vqvae.convert_decoder(torch.float32)
    return vqvae


def _latent(vqvae: VQVAE) -> tuple[int, int, int]:
    return vqvae.config.z_channels, vqvae.config.sides[-1], vqvae.config.sides[-1]


def remainder(shape: Shape, settings: Settings) -> Iterator[Record]:
    """Measure what is left of an image's time, decoder included, without products and attention."""
    model = shape.build("mvar", settings.device).to(shape.dtype).eval()
    vqvae = _vqvae(shape, settings)
    labels = torch.zeros(shape.batch, dtype=torch.int64, device=settings.device)

    @torch.no_grad()
    def plain() -> Tensor:
        _, f_hat, _ = plain_sample(model, vqvae.quantizer, labels, [torch.Generator()], _SETTINGS)
        return vqvae.decode_latents(f_hat)

    @torch.no_grad()
    def ours() -> Tensor:
        drawn = sample(model, vqvae.quantizer, labels, [torch.Generator()], _SETTINGS, keep_logits=False)
        return torch.cat(list(vqvae.decode_slices(drawn.f_hat)))

    shares = [rest_share(work) for work in (plain, ours)]
    yield record(f"mvar, {shape.name}", "time outside of products and attention", *shares, "of an image")


def rest_share(work: Callable[[], object]) -> float:
    """Return the share of operators' own time that is not products, convolutions or attention."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        work()
    own = {event.key: event.self_cpu_time_total for event in profiled.key_averages()}
    rest = sum(time for name, time in own.items() if not any(part in name for part in _WORK))
    return rest / sum(own.values())


def table(records: list[Record]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = ["| case | what | plain loop | engine | engine / plain |", "|---|---|---|---|---|"]
    for row in records:
        plain = "" if row["plain"] is None else f"{row['plain']:.4g}"
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.3f}"
        unit = f" ({row['unit']})" if row["unit"] else ""
        lines.append(f"| {row['case']} | {row['what']}{unit} | {plain} | {row['engine']:.4g} | {ratio} |")
    return lines
