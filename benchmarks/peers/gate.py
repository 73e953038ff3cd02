"""Gate, then time: no competitor's time counts before its output and gradients agree with float64."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.core.attention_report import Result
from benchmarks.core.cases import Case
from benchmarks.core.ceilings import Ceilings
from benchmarks.core.measure import measure
from benchmarks.peers.baselines import Attention, Baseline
from mvar_kernels.backends import AttentionCall
from mvar_kernels.dispatch import load

# Largest difference from float64 that rounding explains, relative to the largest value, with room.
GATE = {torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
# Above this many tokens the oracle is the `tiled` backend in float64, which tests compare with the dense one;
# the dense oracle would need tokens^2 x 8 bytes per head.
_MOST_DENSE_ORACLE = 2_300


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
    """Gate every competitor of one case, then time those that passed in turns."""
    return run_together([(case, competitors)], device, seconds, ceilings)


def run_together(
    entries: list[tuple[Case, list[Baseline]]], device: torch.device, seconds: float, ceilings: Ceilings
) -> Iterator[Result]:
    """Gate and time several cases in the same rounds, so that their ratios see one state of the machine."""
    ready: list[_Ready] = []
    for case, competitors in entries:
        query, key, value, logit_scale, grad = case.inputs(device)
        leaves = [
            tensor.requires_grad_(case.direction == "both")
            for tensor in (query.detach(), key.detach(), value.detach())
        ]
        expected = oracle(case, query, key, value, logit_scale, grad)
        for baseline in competitors:
            passed = _gate(case, baseline, device, leaves, logit_scale, grad, expected)
            if isinstance(passed, Result):
                yield passed
            else:
                ready.append(passed)
    timings = measure({index: each.run for index, each in enumerate(ready)}, device, seconds)
    for each, timing in zip(ready, timings.values()):
        over_floor = timing.median / ceilings.floor(each.case)
        yield Result(each.case, each.name, timing, "", each.prepared, each.error, over_floor)
    gc.collect()


def _gate(
    case: Case,
    baseline: Baseline,
    device: torch.device,
    leaves: list[Tensor],
    logit_scale: Tensor | None,
    grad: Tensor,
    expected: list[Tensor],
) -> _Ready | Result:
    """Return the competitor ready to be timed, or a result with the reason why it is not."""
    reason = baseline.can_run(case, device)
    if reason is not None:
        return Result(case, baseline.name, None, reason)
    started = time.perf_counter()
    try:
        attention = baseline.prepare(case, device)
        prepared = time.perf_counter() - started
        error = largest_error(_call(case, attention, leaves, logit_scale, grad), expected)
    except Exception as failure:  # a peer that fails is a row of the table, not the end of the run
        return Result(case, baseline.name, None, failed(failure))
    # `not <=` rather than `>`: NaN must not pass.
    if baseline.exact and not error <= GATE[case.dtype]:
        reason = f"refused: differs from float64 by {error:.1e}"
        return Result(case, baseline.name, None, reason, prepared, error)

    def run() -> object:
        return _call(case, attention, leaves, logit_scale, grad)

    return _Ready(case, baseline.name, run, prepared, error)


def failed(failure: Exception) -> str:
    """Return an exception as the reason in a table."""
    first_line = (str(failure).splitlines() or [""])[0]
    return f"failed: {type(failure).__name__}: {first_line[:120]}"


def _call(
    case: Case, attention: Attention, leaves: list[Tensor], logit_scale: Tensor | None, grad: Tensor
) -> list[Tensor]:
    if case.direction == "forward":
        with torch.no_grad():
            return [attention(*leaves, logit_scale)]
    out = attention(*leaves, logit_scale)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def oracle(
    case: Case, query: Tensor, key: Tensor, value: Tensor, logit_scale: Tensor | None, grad: Tensor
) -> list[Tensor]:
    """Return output and gradients in float64 of the first batch element and head."""
    backend = load("reference" if case.tokens <= _MOST_DENSE_ORACLE else "tiled")
    scale = 1.0 if case.cosine else case.head_dim**-0.5
    q, k, v, do = (tensor[:1, :, :1].detach().double().cpu() for tensor in (query, key, value, grad))
    factor = None if logit_scale is None else logit_scale[:1].double().cpu()
    call = AttentionCall(q, k, v, factor, case.neighborhood, scale)
    out, lse = backend.forward(call)
    if case.direction == "forward":
        return [out]
    return [
        out,
        *backend.backward(call, out, lse, do, None)[:3],
    ]


def largest_error(actual: list[Tensor], expected: list[Tensor]) -> float:
    """Return the largest difference over output and gradients, relative to the largest value of each.

    Args:
        actual: Tensors (B, L, H, D), of which the first batch element and head are compared.
        expected: The oracle's tensors (1, L, 1, D).
    """
    errors = []
    for ours, theirs in zip(actual, expected):
        # On a grid of one token the gradients of q and k are zero but for rounding; hence the floor of 0.1.
        difference = (ours[:1, :, :1].double().cpu() - theirs).abs().max() / theirs.abs().max().clamp_min(0.1)
        errors.append(difference.item())
    # Unlike Python's max, torch's is NaN if any error is.
    return torch.tensor(errors, dtype=torch.float64).max().item()
