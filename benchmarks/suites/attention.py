"""The attention suite: gate, then time, every competitor on every case."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.core.cases import Case
from benchmarks.core.machine import Ceilings
from benchmarks.core.measure import Timing, measure
from benchmarks.suites.baselines import Attention, Baseline
from mvar_kernels.dispatch import load

# Largest difference from float64 that a right kernel shows, relative to the largest value: rounding of the type, with room.
GATE = {torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
# Beyond this the float64 oracle is tiled's, which tests hold to the dense one; the dense one would need tokens^2 x 8 bytes a head.
_MOST_DENSE_ORACLE = 2_300


@dataclass(frozen=True)
class Result:
    """One competitor on one case: a timing, or the reason why there is none."""

    case: Case
    name: str
    timing: Timing | None
    reason: str = ""
    prepared: float = 0.0
    error: float = 0.0
    time_over_floor: float | None = None


@dataclass(frozen=True)
class _Ready:
    """A competitor that passed the gate of a case."""

    case: Case
    name: str
    run: Callable[[], object]
    prepared: float
    error: float


def run_case(
    case: Case, competitors: list[Baseline], device: torch.device, seconds: float, ceilings: Ceilings
) -> Iterator[Result]:
    """Gate every competitor that can run against float64, then time those that passed, in turn."""
    return run_together([(case, competitors)], device, seconds, ceilings)


def run_together(
    entries: list[tuple[Case, list[Baseline]]], device: torch.device, seconds: float, ceilings: Ceilings
) -> Iterator[Result]:
    """As `run_case`, for several cases in the same rounds: what is to be compared between cases meets the same moods of the machine."""
    ready: list[_Ready] = []
    for case, competitors in entries:
        query, key, value, factor, grad = case.inputs(device)
        leaves = [
            tensor.requires_grad_(case.direction == "both")
            for tensor in (query.detach(), key.detach(), value.detach())
        ]
        right = oracle(case, query, key, value, factor, grad)
        for baseline in competitors:
            found = _gate(case, baseline, device, leaves, factor, grad, right)
            if isinstance(found, Result):
                yield found
            else:
                ready.append(found)
    timings = measure({index: each.run for index, each in enumerate(ready)}, device, seconds)
    for each, timing in zip(ready, timings.values()):
        yield Result(
            each.case,
            each.name,
            timing,
            "",
            each.prepared,
            each.error,
            timing.median / ceilings.floor(each.case),
        )
    gc.collect()


def _gate(
    case: Case,
    baseline: Baseline,
    device: torch.device,
    leaves: list[Tensor],
    factor: Tensor | None,
    grad: Tensor,
    right: list[Tensor],
) -> _Ready | Result:
    """The competitor ready to be timed, or the reason why it is not."""
    reason = baseline.can_run(case, device)
    if reason is not None:
        return Result(case, baseline.name, None, reason)
    begun = time.perf_counter()
    try:
        attention = baseline.prepare(case, device)
        prepared = time.perf_counter() - begun
        error = largest_error(_call(case, attention, leaves, factor, grad), right)
    except Exception as failure:  # a peer that cannot is a row of the table, not the end of the run
        return Result(
            case,
            baseline.name,
            None,
            f"failed: {type(failure).__name__}: {str(failure).splitlines()[0][:120]}",
        )
    if baseline.exact and not error <= GATE[case.dtype]:
        return Result(
            case, baseline.name, None, f"refused: differs from float64 by {error:.1e}", prepared, error
        )
    return _Ready(case, baseline.name, lambda: _call(case, attention, leaves, factor, grad), prepared, error)


def _call(
    case: Case, attention: Attention, leaves: list[Tensor], factor: Tensor | None, grad: Tensor
) -> list[Tensor]:
    if case.direction == "forward":
        with torch.no_grad():
            return [attention(*leaves, factor)]
    out = attention(*leaves, factor)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def oracle(
    case: Case, query: Tensor, key: Tensor, value: Tensor, factor: Tensor | None, grad: Tensor
) -> list[Tensor]:
    """Output and gradients in float64 of the first batch element and head."""
    backend = load("reference" if case.tokens <= _MOST_DENSE_ORACLE else "tiled")
    scale = 1.0 if case.cosine else case.head_dim**-0.5
    q, k, v, do = (tensor[:1, :, :1].detach().double().cpu() for tensor in (query, key, value, grad))
    f = None if factor is None else factor[:1].double().cpu()
    out, lse = backend.forward(q, k, v, f, case.neighborhood, scale)
    if case.direction == "forward":
        return [out]
    return [out, *backend.backward(do, None, q, k, v, out, lse, f, case.neighborhood, scale)[:3]]


def largest_error(actual: list[Tensor], right: list[Tensor]) -> float:
    """Over output and gradients, relative to the largest value of each."""
    errors = []
    for ours, theirs in zip(actual, right):
        # A grid of one token has gradients of q and k that are zero but for rounding.
        difference = (ours[:1, :, :1].double().cpu() - theirs).abs().max() / theirs.abs().max().clamp_min(0.1)
        errors.append(difference.item())
    return max(errors)
