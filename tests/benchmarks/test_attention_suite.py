"""The attention suite refuses wrong kernels, names absent peers and writes what it measured."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from benchmarks.__main__ import main
from benchmarks.core.cases import Case, grid, pyramid
from benchmarks.core.ceilings import Ceilings
from benchmarks.peers.baselines import Baseline, DenseMask, Natten, Ours, baselines
from benchmarks.peers.gate import run_case
from benchmarks.suites.table import SUITES, load

CPU = torch.device("cpu")
CEILINGS = Ceilings(1e10, {torch.float32: 1e11})


class Shifted(Baseline):
    """Our windows moved by one column: nearly right, and wrong."""

    name = "shifted"

    def prepare(self, case, device):
        right = Ours("sdpa").prepare(case, device)
        return lambda query, key, value, logit_scale: right(
            query, key.roll(1, dims=1), value.roll(1, dims=1), logit_scale
        )


class HalfGradient(Baseline):
    """The right output with half of its gradient."""

    name = "half gradient"

    def prepare(self, case, device):
        right = Ours("sdpa").prepare(case, device)
        return lambda *inputs: (right(*inputs) + right(*inputs).detach()) / 2


class NotANumber(Baseline):
    """NaN compares as neither larger nor smaller than a bound."""

    name = "nan"

    def prepare(self, case, device):
        return lambda query, key, value, logit_scale: (query + key + value) * float("nan")


class NotANumberBackward(Baseline):
    """The right output, and NaN in the gradient of the key alone."""

    name = "nan backward"

    def prepare(self, case, device):
        right = Ours("sdpa").prepare(case, device)

        def run(query, key, value, logit_scale):
            if key.requires_grad:
                key = key.clone()
                key.register_hook(lambda grad: grad * float("nan"))
            return right(query, key, value, logit_scale)

        return run


@pytest.mark.parametrize("direction", ["forward", "both"])
@pytest.mark.parametrize("wrong", [Shifted(), NotANumber()], ids=lambda baseline: baseline.name)
def test_a_wrong_kernel_is_refused_not_timed(wrong, direction):
    case = grid(6, kernel_size=3, heads=2, head_dim=8)
    case = case.both() if direction == "both" else case
    competitors = [wrong, DenseMask(), Ours("tiled")]
    results = {r.name: r for r in run_case(case, competitors, CPU, 0.001, CEILINGS)}
    assert results[wrong.name].timing is None
    assert results[wrong.name].reason.startswith("refused")
    assert results["mvar tiled"].timing.median > 0
    assert results["mvar tiled"].error < 1e-5


@pytest.mark.parametrize("wrong", [HalfGradient(), NotANumberBackward()], ids=lambda baseline: baseline.name)
def test_wrong_gradients_are_refused(wrong):
    case = grid(4, kernel_size=3, heads=1, head_dim=8)
    (forward,) = run_case(case, [wrong], CPU, 0.001, CEILINGS)
    (both,) = run_case(case.both(), [wrong], CPU, 0.001, CEILINGS)
    assert forward.timing is not None, "its output is right"
    assert both.timing is None
    assert both.reason.startswith("refused")


def test_a_failing_peer_is_a_row_of_the_table():
    class Failing(Baseline):
        name = "failing"

        def prepare(self, case, device):
            raise RuntimeError("no kernel image\nand more lines")

    (result,) = run_case(grid(4, head_dim=8), [Failing()], CPU, 0.001, CEILINGS)
    assert result.timing is None
    assert result.reason == "failed: RuntimeError: no kernel image"


def test_who_cannot_run_says_why(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    assert "not installed" in Natten(compiled=False).can_run(grid(8), CPU)
    reasons = {b.name: b.can_run(pyramid("1024px").both(), CPU) for b in baselines()}
    assert "backward" in reasons["FlexAttention, compiled"]
    assert "mask" in reasons["SDPA, dense mask"]
    assert "triton" in reasons["mvar triton"]
    assert reasons["mvar tiled"] is None


def test_attention_of_var_is_a_case():
    case = Case("VAR", (1, 2, 3), heads=1, head_dim=8, causal=True)
    assert case.attended_pairs == 1 * 1 + 4 * 5 + 9 * 14
    (result,) = run_case(case, [Ours("sdpa")], CPU, 0.001, CEILINGS)
    assert result.timing is not None, result.reason
    assert result.error < 1e-6


def test_the_command_writes_its_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "benchmarks.suites.attention.attention_cases",
        lambda device, quick: [grid(4, kernel_size=3, heads=1, head_dim=8)],
    )
    result = CliRunner().invoke(
        main, ["--quick", "--device", "cpu", "--seconds", "0.001", "--out", str(tmp_path)]
    )
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "attention.json").read_text())
    named = {record["competitor"] for record in written["records"]}
    assert {"mvar tiled", "mvar triton", "SDPA, dense mask", "NATTEN over FlexAttention"} <= named
    assert {"torch", "commit", "threads"} <= set(written["machine"])
    triton = next(record for record in written["records"] if record["competitor"] == "mvar triton")
    assert triton["reason"]
    assert "median_ms" not in triton
    assert len((tmp_path / "attention.csv").read_text().splitlines()) == 1 + len(written["records"])
    assert "| mvar tiled |" in (tmp_path / "attention.md").read_text()


@pytest.mark.parametrize("name", SUITES)
def test_every_row_of_the_table_is_a_suite(name):
    assert callable(load(name))


def test_measuring_attention_needs_no_optional_package(tmp_path):
    """On a GPU machine the attention suite and the tuner run from the tree with torch and triton alone."""
    blocked = ("huggingface_hub", "datasets", "matplotlib", "sklearn", "tqdm", "yaml")
    modules = (
        "benchmarks.__main__",
        "benchmarks.suites.attention",
        "benchmarks.suites.cpu_targets",
        "benchmarks.tune",
    )
    program = (
        f"import sys, importlib\nfor name in {blocked!r}: sys.modules[name] = None\n"
        f"for name in {modules!r}: importlib.import_module(name)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert done.returncode == 0, done.stderr
