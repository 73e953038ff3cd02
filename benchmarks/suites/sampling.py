"""The sampling suite: the last step (the largest scale) and a whole run, VAR with its cache beside MVAR on every backend.

The gate compares the last scale's logits with those of plain PyTorch under teacher forcing. Peak memory is the memory suite's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.core.measure import Timing, measure
from benchmarks.core.report import timed
from benchmarks.core.shapes import Shape, tokenizer
from benchmarks.estimates.activations import example
from benchmarks.suites.baselines import Ours
from benchmarks.suites.plain_pytorch import PlainModel, case_of
from mvar_models.networks.quantizer import MultiScaleQuantizer
from mvar_models.networks.transformer import ScaleTransformer
from mvar_models.sampling.filters import draw, filter_logits
from mvar_models.sampling.sampler import sample

# Of the last scale's logits, relative to the largest.
_GATE = {torch.float32: 1e-4, torch.bfloat16: 6e-2}
_FILTERS = {"top_k": 900, "top_p": 0.96}
_GUIDANCE = 1.5
BACKENDS = ("auto", "triton", "tiled", "sdpa")
VAR_NAME = "VAR, KV cache"


@dataclass(frozen=True)
class SamplingResult:
    shape: Shape
    work: str
    name: str
    timing: Timing | None
    reason: str = ""


def shapes(device: torch.device, quick: bool) -> list[Shape]:
    """Weights are of the shape's type."""
    if device.type == "cuda":
        more = [Shape(16, "512px", 16, torch.bfloat16), Shape(30, batch=16, dtype=torch.bfloat16)]
        return [Shape(16, batch=32, dtype=torch.bfloat16), *([] if quick else more)]
    return (
        [Shape(4, width=1024, dtype=torch.bfloat16)]
        if quick
        else [Shape(16, dtype=torch.bfloat16), Shape(2, "512px", width=1024)]
    )


@torch.no_grad()
def run_shape(
    shape: Shape, device: torch.device, seconds: float, backends: tuple[str, ...] = BACKENDS
) -> Iterator[SamplingResult]:
    quantizer = tokenizer(shape, channels=32).quantizer.to(device, shape.dtype)
    steps: dict[str, Callable[[], object]] = {}
    runs: dict[str, Callable[[], object]] = {}
    for arch, backend in (("var", "auto"), *(("mvar", backend) for backend in backends)):
        name = VAR_NAME if arch == "var" else f"MVAR {backend}"
        model = shape.build(arch, device).to(shape.dtype).eval()
        reason = (
            None
            if arch == "var"
            else Ours(backend).can_run(case_of(model, shape.batch, shape.dtype, "forward"), device)
        )
        model.attention_backend = backend
        if reason is None:
            step, reason = _gated_step(model, shape, device)
        if reason is not None:
            yield from (
                SamplingResult(shape, work, name, None, reason) for work in ("last step", "whole run")
            )
            continue
        steps[name], runs[name] = step, _whole_run(model, quantizer, shape, device)
    for work, ready in (("last step", steps), ("whole run", runs)):
        for name, timing in measure(ready, device, seconds, least_calls=3).items():
            yield SamplingResult(shape, work, name, timing)


def _gated_step(
    model: ScaleTransformer, shape: Shape, device: torch.device
) -> tuple[Callable[[], Tensor], str | None]:
    """The step, and None or why it is refused."""
    labels, inputs, _ = example(model, shape.batch, device)
    inputs = inputs.to(shape.dtype)
    step, logits = last_step(model, labels, inputs)
    right = PlainModel(model, shape.dtype).logits(labels, inputs)[:, -logits().shape[1] :]
    error = ((logits() - right).abs().max() / right.abs().max()).item()
    return step, None if error <= _GATE[
        shape.dtype
    ] else f"refused: logits differ from plain PyTorch by {error:.1e}"


def last_step(
    model: ScaleTransformer, labels: Tensor, inputs: Tensor
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Drawing the largest scale with the earlier ones in the cache, if there is one; and its logits alone."""
    last = len(model.config.sides) - 1
    state = model.new_state(labels)
    # Only a cache makes the last scale depend on the states of the others.
    for scale in range(last) if state.cache is not None else ():
        model.step(state, _scale_input(model, inputs, scale), scale)
    uniform = torch.rand((len(labels), model.config.sides[-1] ** 2), device=inputs.device)

    def logits() -> Tensor:
        hidden = model.step(state.fork(), _scale_input(model, inputs, last), last)
        return model.logits(hidden, state.class_embedding)

    return torch.no_grad()(lambda: draw(filter_logits(logits(), **_FILTERS), uniform)), torch.no_grad()(
        logits
    )


def _scale_input(model: ScaleTransformer, inputs: Tensor, scale: int) -> Tensor:
    tokens = model.pyramid.scale_slice(scale)
    return inputs[:, max(tokens.start - 1, 0) : tokens.stop - 1]


def _whole_run(
    model: ScaleTransformer, quantizer: MultiScaleQuantizer, shape: Shape, device: torch.device
) -> Callable[[], object]:
    labels = torch.arange(shape.batch, device=device) % model.config.num_classes

    def run() -> object:
        generators = [torch.Generator().manual_seed(index) for index in range(shape.batch)]
        return sample(
            model, quantizer, labels, generators, guidance_scale=_GUIDANCE, keep_logits=False, **_FILTERS
        )

    return run


def rows(results: list[SamplingResult]) -> list[dict[str, Any]]:
    var = {(r.shape, r.work): r.timing for r in results if r.name == VAR_NAME and r.timing}
    records = []
    for r in results:
        record = {
            "case": r.shape.name,
            "direction": r.work,
            "competitor": r.name,
            "reason": r.reason,
            "batch": r.shape.batch,
        }
        records.append(record | timed(r.timing, var.get((r.shape, r.work))))
    return records
