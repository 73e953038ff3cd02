"""The model suite: loss of a batch, forward alone and a whole training step, ours beside plain PyTorch with every attention that trains.

Every competitor computes the same loss from the same parameters; it is gated on the loss and on gradients against plain PyTorch with the
dense mask, then timed in turn.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.core.measure import Timing, measure
from benchmarks.core.report import timed
from benchmarks.core.shapes import Shape
from benchmarks.estimates.activations import example
from benchmarks.suites.baselines import Baseline, DenseMask, Flex, Natten, PerScale
from benchmarks.suites.plain_pytorch import PlainModel, case_of
from mvar_models.networks.transformer import ScaleTransformer

DIRECTIONS = ("forward", "training step")
PLAIN = f"plain, {DenseMask.name}"
# Of loss and of gradients of the embeddings, which all of the model passes through, relative to the largest: rounding with room.
_GATE = {torch.float32: (1e-5, 1e-3), torch.bfloat16: (2e-3, 1e-1)}
# A quarter of an 80 GB card for a bias of one type; CPUs take minutes.
_MOST_DENSE = {"cpu": 3_000, "cuda": 20_000}

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class ModelResult:
    shape: Shape
    arch: str
    direction: str
    name: str
    timing: Timing | None
    reason: str = ""
    flops: float | None = None


def shapes(device: torch.device, quick: bool) -> list[Shape]:
    if device.type == "cuda":
        some = [Shape(16, batch=32, dtype=torch.bfloat16)]
        more = [Shape(16, "512px", 8, torch.bfloat16), Shape(16, "1024px", 2, torch.bfloat16)]
        more += [Shape(depth, batch=8, dtype=torch.bfloat16) for depth in (20, 24, 30)]
    else:
        # The width and heads of d16; its 16 blocks would take minutes a step.
        some, more = (
            [Shape(2, width=1024)],
            [Shape(2, width=1024, dtype=torch.bfloat16), Shape(1, "512px", width=1024)],
        )
    return some if quick else some + more


def competitors() -> list[Baseline | str]:
    """Attention of a plain model, or the name of ours."""
    return [DenseMask(), PerScale(), Flex(), Natten(compiled=True), "ours", "ours, checkpointed"]


def run_shape(
    shape: Shape,
    arch: str,
    direction: str,
    device: torch.device,
    seconds: float,
    extra: tuple[Baseline, ...] = (),
) -> Iterator[ModelResult]:
    """Gate, then time, all competitors on one shape."""
    model = shape.build(arch, device)
    inputs = example(model, shape.batch, device)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        parameters, lr=0.0, weight_decay=0.0
    )  # the work of a step, and the weights stay
    ready: dict[str, Callable[[], object]] = {}
    right: list[Tensor] | None = None
    for competitor in [*competitors(), *extra]:
        name = competitor if isinstance(competitor, str) else f"plain, {competitor.name}"
        reason = None if isinstance(competitor, str) else _reason(competitor, model, shape, direction, device)
        if competitor == "ours, checkpointed" and direction == "forward":
            reason = "nothing is kept without backward"
        if reason is not None:
            yield ModelResult(shape, arch, direction, name, None, reason)
            continue
        loss = _loss(competitor, model, shape)
        try:
            found = _checked(loss, model, inputs, shape.dtype)
        except Exception as failure:  # a peer that cannot is a row of the table, not the end of the run
            yield ModelResult(
                shape,
                arch,
                direction,
                name,
                None,
                f"failed: {type(failure).__name__}: {str(failure).splitlines()[0][:120]}",
            )
            continue
        right = found if right is None else right
        reason = refusal(found, right, shape.dtype)
        if reason is not None:
            yield ModelResult(shape, arch, direction, name, None, reason)
            continue
        ready[name] = _work(loss, inputs, shape.dtype, direction, optimizer)
    for name, timing in measure(ready, device, seconds, least_calls=3).items():
        yield ModelResult(shape, arch, direction, name, timing)
    del ready, optimizer, model
    gc.collect()


def _reason(
    baseline: Baseline, model: ScaleTransformer, shape: Shape, direction: str, device: torch.device
) -> str | None:
    if model.config.length > _MOST_DENSE[device.type] and isinstance(baseline, (DenseMask, Flex)):
        return "a dense mask of this size is not attempted"
    return baseline.can_run(case_of(model, shape.batch, shape.dtype, "both"), device)


def _loss(competitor: Baseline | str, model: ScaleTransformer, shape: Shape) -> Loss:
    if not isinstance(competitor, str):
        return PlainModel(model, shape.dtype, competitor).loss

    def ours(*inputs: Tensor) -> Tensor:
        model.gradient_checkpointing = competitor == "ours, checkpointed"
        return model.loss(*inputs)

    return ours


def _checked(
    loss: Loss, model: ScaleTransformer, inputs: tuple[Tensor, ...], dtype: torch.dtype
) -> list[Tensor]:
    """The loss and the gradients of the embeddings of position and of the first block's q, k and v."""
    with torch.autocast(inputs[0].device.type, dtype, enabled=dtype != torch.float32):
        value = loss(*inputs)
    return [
        value.detach(),
        *torch.autograd.grad(value, [model.positions, model.blocks[0].attention.qkv.weight]),
    ]


def refusal(found: list[Tensor], right: list[Tensor], dtype: torch.dtype) -> str | None:
    """None, or how far loss or gradients are from plain PyTorch's."""
    bounds = _GATE[dtype]
    for what, bound, a, b in zip(
        ("loss", "gradient of the positions", "gradient of q, k, v"),
        (bounds[0], bounds[1], bounds[1]),
        found,
        right,
    ):
        error = ((a - b).abs().max() / b.abs().max()).item()
        if not error <= bound:
            return f"refused: {what} differs from plain PyTorch by {error:.1e}"
    return None


def _work(
    loss: Loss,
    inputs: tuple[Tensor, ...],
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


def rows(results: list[ModelResult]) -> list[dict[str, Any]]:
    plain = {(r.shape, r.arch, r.direction): r.timing for r in results if r.name == PLAIN and r.timing}
    records = []
    for r in results:
        record: dict[str, Any] = {
            "case": f"{r.arch.upper()} {r.shape.name}", "arch": r.arch, "direction": r.direction, "competitor": r.name, "reason": r.reason,
            "tokens": sum(side * side for side in r.shape.config(r.arch).sides), "batch": r.shape.batch,
        }  # fmt: skip
        records.append(record | timed(r.timing, plain.get((r.shape, r.arch, r.direction))))
    return records
