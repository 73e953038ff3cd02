"""The sampling suite: the last scale's step, all codes, and the decoder apart.

VAR runs with its cache, MVAR on every backend.

A model is timed only after its last scale's logits agree with plain PyTorch under teacher forcing. The
memory suite measures peak memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import click
import torch
from torch import Tensor

from benchmarks.core.activations import example
from benchmarks.core.measure import Timing, measure
from benchmarks.core.report import Record, timing_columns
from benchmarks.core.shapes import Shape, tokenizer
from benchmarks.peers.baselines import Ours
from benchmarks.peers.plain_pytorch import PlainModel, case_of
from benchmarks.suites.settings import Settings, report_times
from mvar_models.networks.quantizer import MultiScaleQuantizer
from mvar_models.networks.transformer import ScaleTransformer
from mvar_models.networks.vqvae import VQVAE
from mvar_models.sampling.sampler import sample
from mvar_models.sampling.samplers import draw, filter_logits
from mvar_models.sampling.settings import SamplingSettings

# Largest difference of the last scale's logits that rounding explains, relative to the largest logit.
_GATE = {torch.float32: 1e-4, torch.bfloat16: 6e-2}
_FILTERS: dict[str, Any] = {"top_k": 900, "top_p": 0.96}
_GUIDANCE = 1.5
BACKENDS = ("auto", "triton", "tiled", "sdpa")
VAR_NAME = "VAR, KV cache"


@dataclass(frozen=True)
class SamplingResult:
    """One model on one backend.

    Attributes:
        shape: Its size.
        work: "last step", "whole run" for all codes of a batch, or "decoder".
        name: The model and its backend.
        timing: None if it was not timed.
        reason: Why it was not.
    """

    shape: Shape
    work: str
    name: str
    timing: Timing | None
    reason: str = ""


def run(settings: Settings) -> list[str]:
    """Time all shapes; write the results after each, so that a stopped run leaves what it measured."""
    results: list[SamplingResult] = []
    for shape in shapes(settings.device, settings.quick):
        click.echo(f"{shape.name}, sampling ...", err=True)
        channels = 32 if settings.quick else 160
        results += run_shape(shape, settings.device, settings.seconds, channels=channels)
        lines = report_times(settings, "sampling", records(results), VAR_NAME)
    return lines


def shapes(device: torch.device, quick: bool) -> list[Shape]:
    """List the shapes to measure; weights have the shape's type."""
    if device.type == "cuda":
        more = [Shape(16, "512px", 16, torch.bfloat16), Shape(30, batch=16, dtype=torch.bfloat16)]
        return [Shape(16, batch=32, dtype=torch.bfloat16), *([] if quick else more)]
    if quick:
        return [Shape(4, width=1024, dtype=torch.bfloat16)]
    return [Shape(16, dtype=torch.bfloat16), Shape(2, "512px", width=1024)]


@torch.no_grad()
def run_shape(
    shape: Shape,
    device: torch.device,
    seconds: float,
    backends: tuple[str, ...] = BACKENDS,
    channels: int = 160,
) -> Iterator[SamplingResult]:
    """Gate VAR, and MVAR on each backend; then time the last step, whole runs and the decoder in turns.

    Args:
        shape: The size of the models.
        device: Where they run.
        seconds: Time per competitor.
        backends: Of MVAR.
        channels: Width of the decoder; 160 is the released one's.
    """
    quantizer = tokenizer(shape, channels=32).quantizer.to(device, shape.dtype)
    steps: dict[str, Callable[[], object]] = {}
    runs: dict[str, Callable[[], object]] = {}
    for arch, backend in (("var", "auto"), *(("mvar", backend) for backend in backends)):
        name = VAR_NAME if arch == "var" else f"MVAR {backend}"
        model = shape.build(arch, device).to(shape.dtype).eval()
        model.attention_backend = backend
        # "auto" runs everything.
        reason = Ours(backend).can_run(case_of(model, shape.batch, shape.dtype, "forward"), device)
        if reason is None:
            step, reason = _gated_step(model, shape, device)
        if reason is None:
            steps[name], runs[name] = step, _whole_run(model, quantizer, shape, device)
        else:
            for work in ("last step", "whole run"):
                yield SamplingResult(shape, work, name, None, reason)
    decoders = _decoders(shape, device, channels)
    for work, ready in (("last step", steps), ("whole run", runs), ("decoder", decoders)):
        for name, timing in measure(ready, device, seconds, least_calls=3).items():
            yield SamplingResult(shape, work, name, timing)


def _decoders(shape: Shape, device: torch.device, channels: int) -> dict[str, Callable[[], object]]:
    """Return decoders of a batch, which every model shares.

    On a CPU weights are float32: without instructions of its own bfloat16 is emulated, and convolutions in it
    take seven times as long.
    """
    ways = [(torch.float32, False)]
    if device.type == "cuda":
        ways = [(shape.dtype, False), (shape.dtype, True)]
    decoders: dict[str, Callable[[], object]] = {}
    for dtype, channels_last in ways:
        vqvae = tokenizer(shape, channels).to(device)
        vqvae.convert_decoder(dtype, channels_last)
        side = vqvae.config.sides[-1]
        f_hat = torch.randn((shape.batch, vqvae.config.z_channels, side, side), device=device)
        name = f"VQVAE, {str(dtype).removeprefix('torch.')}{', channels last' if channels_last else ''}"
        decoders[name] = functools.partial(_decode, vqvae, f_hat)
    return decoders


@torch.no_grad()
def _decode(vqvae: VQVAE, f_hat: Tensor) -> list[Tensor]:
    return list(vqvae.decode_slices(f_hat))


def _gated_step(
    model: ScaleTransformer, shape: Shape, device: torch.device
) -> tuple[Callable[[], Tensor], str | None]:
    """Return the last step, and None or why it must not be timed."""
    labels, inputs, _ = example(model, shape.batch, device)
    inputs = inputs.to(shape.dtype)
    step, last_logits = last_step(model, labels, inputs)
    actual = last_logits()
    expected = PlainModel(model, shape.dtype).logits(labels, inputs)[:, -actual.shape[1] :]
    error = ((actual - expected).abs().max() / expected.abs().max()).item()
    # `not <=` rather than `>`: NaN must not pass.
    refused = not error <= _GATE[shape.dtype]
    return step, f"refused: logits differ from plain PyTorch by {error:.1e}" if refused else None


def last_step(
    model: ScaleTransformer, labels: Tensor, inputs: Tensor
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Return two functions: draw the codes of the largest scale, and compute its logits alone.

    The earlier scales are in the cache, if the model has one.
    """
    last = len(model.config.sides) - 1
    state = model.new_state(labels)
    # Without a cache the last scale does not depend on the states of the others.
    for scale in range(last) if state.cache is not None else ():
        model.step(state, scale_input(model, inputs, scale), scale)
    uniform = torch.rand((len(labels), model.config.sides[-1] ** 2), device=inputs.device)

    @torch.no_grad()
    def logits() -> Tensor:
        hidden = model.step(state.fork(), scale_input(model, inputs, last), last)
        return model.logits(hidden, state.class_embedding)

    @torch.no_grad()
    def step() -> Tensor:
        return draw(filter_logits(logits(), **_FILTERS), uniform)

    return step, logits


def scale_input(model: ScaleTransformer, inputs: Tensor, scale: int) -> Tensor:
    """Return the part of the teacher-forcing inputs (B, L - 1, z) that one scale's step reads."""
    tokens = model.pyramid.scale_slice(scale)
    # The first token comes from the class embedding, so inputs are shifted by one.
    return inputs[:, max(tokens.start - 1, 0) : tokens.stop - 1]


def _whole_run(
    model: ScaleTransformer, quantizer: MultiScaleQuantizer, shape: Shape, device: torch.device
) -> Callable[[], object]:
    labels = torch.arange(shape.batch, device=device) % model.config.num_classes

    def run() -> object:
        generators = [torch.Generator().manual_seed(index) for index in range(shape.batch)]
        return sample(
            model, quantizer, labels, generators, SamplingSettings(_GUIDANCE, **_FILTERS), keep_logits=False
        )

    return run


def records(results: list[SamplingResult]) -> list[Record]:
    """Return one flat record per result; speed-ups are over VAR with its cache."""
    var = {(r.shape, r.work): r.timing for r in results if r.name == VAR_NAME and r.timing}
    rows = []
    for r in results:
        record: Record = {
            "case": r.shape.name,
            "direction": r.work,
            "competitor": r.name,
            "reason": r.reason,
            "batch": r.shape.batch,
        }
        rows.append({**record, **timing_columns(r.timing, var.get((r.shape, r.work)))})
    return rows
