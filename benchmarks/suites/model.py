"""The model suite: the loss forward and a training step, ours and plain PyTorch with every attention.

Every competitor computes the same loss from the same parameters. It is timed only after its loss and
gradients agree with plain PyTorch with the dense mask.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import click
import torch
from torch import Tensor

from benchmarks.core.activations import Loss, example
from benchmarks.core.measure import Timing, measure
from benchmarks.core.report import Record, timing_columns
from benchmarks.core.shapes import ARCHITECTURES, Shape
from benchmarks.peers.baselines import Baseline, DenseMask, Flex, Natten, PerScale
from benchmarks.peers.gate import failed
from benchmarks.peers.plain_pytorch import PlainModel, case_of, loss_of
from benchmarks.suites.settings import Settings, report_times
from mvar_models.networks.transformer import ScaleTransformer

DIRECTIONS = ("forward", "training step")
PLAIN = f"plain, {DenseMask.name}"
# Largest relative difference of loss and of gradients that rounding explains, with room.
_GATE = {torch.float32: (1e-5, 1e-3), torch.bfloat16: (2e-3, 1e-1)}
# Above this many tokens a dense mask takes minutes per step on a CPU, or much of a GPU's memory.
_MOST_DENSE = {"cpu": 3_000, "cuda": 20_000}


@dataclass(frozen=True)
class ModelResult:
    """One competitor on one shape and architecture; `reason` says why there is no timing."""

    shape: Shape
    arch: str
    direction: str
    name: str
    timing: Timing | None
    reason: str = ""


def run(settings: Settings) -> list[str]:
    """Time all shapes; write the results after each, so that a stopped run leaves what it measured."""
    jobs = [
        (shape, arch, direction)
        for shape in shapes(settings.device, settings.quick)
        for arch in ARCHITECTURES
        for direction in DIRECTIONS
    ]
    results: list[ModelResult] = []
    for shape, arch, direction in jobs:
        click.echo(f"{arch.upper()} {shape.name}, {direction} ...", err=True)
        results += run_shape(shape, arch, direction, settings.device, settings.seconds)
        lines = report_times(settings, "model", records(results), PLAIN)
    return lines


def shapes(device: torch.device, quick: bool) -> list[Shape]:
    """List the shapes to measure; CPUs get one or two blocks of d16's width, as its 16 would take minutes."""
    if device.type == "cuda":
        first = Shape(16, batch=32, dtype=torch.bfloat16)
        more = [Shape(16, "512px", 8, torch.bfloat16), Shape(16, "1024px", 2, torch.bfloat16)]
        more += [Shape(depth, batch=8, dtype=torch.bfloat16) for depth in (20, 24, 30)]
    else:
        first = Shape(2, width=1024)
        more = [Shape(2, width=1024, dtype=torch.bfloat16), Shape(1, "512px", width=1024)]
    return [first] if quick else [first, *more]


def competitors() -> list[Baseline | str]:
    """List the attentions of a plain model, then ours by name."""
    return [DenseMask(), PerScale(), Flex(), Natten(compiled=True), "ours", "ours, checkpointed"]


def run_shape(
    shape: Shape,
    arch: str,
    direction: str,
    device: torch.device,
    seconds: float,
    extra: tuple[Baseline, ...] = (),
) -> Iterator[ModelResult]:
    """Gate all competitors on one shape, then time those that passed in turns."""
    model = shape.build(arch, device)
    inputs = example(model, shape.batch, device)
    # A rate of zero does the work of a step and leaves the weights for the next competitor.
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)
    ready: dict[str, Callable[[], object]] = {}
    expected: list[Tensor] | None = None
    for competitor in [*competitors(), *extra]:
        name = competitor if isinstance(competitor, str) else f"plain, {competitor.name}"
        reason = _cannot_run(competitor, model, shape, direction, device)
        if reason is None:
            loss = _loss(competitor, model, shape)
            try:
                actual = _loss_and_gradients(loss, model, inputs, shape.dtype)
            except Exception as failure:  # a peer that fails is a row of the table, not the end of the run
                reason = failed(failure)
            else:
                expected = actual if expected is None else expected
                reason = refusal(actual, expected, shape.dtype)
        if reason is None:
            ready[name] = _work(loss, inputs, shape.dtype, direction, optimizer)
        else:
            yield ModelResult(shape, arch, direction, name, None, reason)
    for name, timing in measure(ready, device, seconds, least_calls=3).items():
        yield ModelResult(shape, arch, direction, name, timing)
    del ready, optimizer, model
    gc.collect()


def _cannot_run(
    competitor: Baseline | str, model: ScaleTransformer, shape: Shape, direction: str, device: torch.device
) -> str | None:
    if isinstance(competitor, str):
        nothing_to_save = competitor == "ours, checkpointed" and direction == "forward"
        return "nothing is kept without backward" if nothing_to_save else None
    if model.config.length > _MOST_DENSE[device.type] and isinstance(competitor, (DenseMask, Flex)):
        return "a dense mask of this size is not attempted"
    return competitor.can_run(case_of(model, shape.batch, shape.dtype, "both"), device)


def _loss(competitor: Baseline | str, model: ScaleTransformer, shape: Shape) -> Loss:
    if not isinstance(competitor, str):
        return PlainModel(model, shape.dtype, competitor).loss

    def ours(*inputs: Tensor) -> Tensor:
        # Both of ours share the model, so the switch is set at each call.
        return loss_of(model, competitor, shape.dtype)(*inputs)

    return ours


def _loss_and_gradients(
    loss: Loss, model: ScaleTransformer, inputs: tuple[Tensor, Tensor, Tensor], dtype: torch.dtype
) -> list[Tensor]:
    """Return the loss, and gradients of two parameters that depend on all blocks: positions and first qkv."""
    with torch.autocast(inputs[0].device.type, dtype, enabled=dtype != torch.float32):
        value = loss(*inputs)
    parameters = [model.positions, model.blocks[0].attention.qkv.weight]
    return [value.detach(), *torch.autograd.grad(value, parameters)]


def refusal(actual: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> str | None:
    """Return None, or how far loss or gradients are from plain PyTorch's."""
    loss_bound, gradient_bound = _GATE[dtype]
    checks = (
        ("loss", loss_bound),
        ("gradient of the positions", gradient_bound),
        ("gradient of q, k, v", gradient_bound),
    )
    for (what, bound), ours, theirs in zip(checks, actual, expected):
        error = ((ours - theirs).abs().max() / theirs.abs().max()).item()
        # `not <=` rather than `>`: NaN must not pass.
        if not error <= bound:
            return f"refused: {what} differs from plain PyTorch by {error:.1e}"
    return None


def _work(
    loss: Loss,
    inputs: tuple[Tensor, Tensor, Tensor],
    dtype: torch.dtype,
    direction: str,
    optimizer: torch.optim.Optimizer,
) -> Callable[[], object]:
    def forward() -> Tensor:
        with torch.autocast(inputs[0].device.type, dtype, enabled=dtype != torch.float32):
            return loss(*inputs)

    def evaluate() -> object:
        with torch.no_grad():
            return forward()

    def step() -> None:
        optimizer.zero_grad()
        forward().backward()
        optimizer.step()

    return evaluate if direction == "forward" else step


def records(results: list[ModelResult]) -> list[Record]:
    """Return one flat record per result; speed-ups are over plain PyTorch with the dense mask."""
    plain = {(r.shape, r.arch, r.direction): r.timing for r in results if r.name == PLAIN and r.timing}
    rows = []
    for r in results:
        record: Record = {
            "case": f"{r.arch.upper()} {r.shape.name}",
            "arch": r.arch,
            "direction": r.direction,
            "competitor": r.name,
            "reason": r.reason,
            "tokens": r.shape.config(r.arch).length,
            "batch": r.shape.batch,
        }
        rows.append({**record, **timing_columns(r.timing, plain.get((r.shape, r.arch, r.direction)))})
    return rows
