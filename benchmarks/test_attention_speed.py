"""Track regressions of attention: `pytest benchmarks/ --benchmark-only`, then `--benchmark-compare`."""

import pytest
import torch

from benchmarks.core.cases import attention_cases
from benchmarks.core.ceilings import Ceilings
from benchmarks.peers.baselines import DenseMask, Ours
from benchmarks.peers.gate import run_case

pytest.importorskip("pytest_benchmark", reason='pytest-benchmark is not installed: pip install ".[bench]"')

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
COMPETITORS = {baseline.name: baseline for baseline in (Ours("auto"), DenseMask())}


@pytest.mark.parametrize("name", COMPETITORS)
@pytest.mark.parametrize(
    "case",
    attention_cases(DEVICE, quick=True),
    ids=lambda case: f"{case.name} {case.direction} {case.cosine}",
)
def test_attention(benchmark, case, name):
    competitor = COMPETITORS[name]
    ceilings = Ceilings(1.0, {case.dtype: 1.0})
    (checked,) = run_case(case, [competitor], DEVICE, 0.0, ceilings)
    assert checked.timing is not None, checked.reason
    query, key, value, logit_scale, grad = case.inputs(DEVICE)
    leaves = [tensor.detach().requires_grad_(case.direction == "both") for tensor in (query, key, value)]
    attention = competitor.prepare(case, DEVICE)

    def run():
        out = attention(*leaves, logit_scale)
        if case.direction == "both":
            torch.autograd.grad(out, leaves, grad)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    benchmark(run)
