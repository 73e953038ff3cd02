"""Suites of whole models: wrong attention is refused, peaks come from fresh processes, counts agree with what they predict."""

import dataclasses
import json

import pytest
import torch
from click.testing import CliRunner
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.__main__ import main
from benchmarks.core import child_jobs as jobs
from benchmarks.core import phases as fresh
from benchmarks.core import plots, report
from benchmarks.core.shapes import Shape
from benchmarks.estimates import published, scaling
from benchmarks.estimates.activations import example
from benchmarks.estimates.costs import attention_flops, costs, product_flops
from benchmarks.suites import memory as memory_suite
from benchmarks.suites import model as model_suite
from benchmarks.suites import sampling as sampling_suite
from benchmarks.suites.baselines import DenseMask, Ours

CPU = torch.device("cpu")
TINY = Shape(1, width=64, vocab_size=32, sides=(1, 2, 4, 9, 10, 11, 12, 13, 14))


class Shifted(DenseMask):
    """The mask of windows one column further on: nearly right, and wrong."""

    name = "shifted"

    def bias(self, case, device):
        return (
            super()
            .bias(case, device)
            .roll(1, dims=1)
            .masked_fill_(torch.eye(case.tokens, dtype=torch.bool), 0)
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_with_wrong_windows_is_refused_not_timed(dtype):
    shape = dataclasses.replace(TINY, dtype=dtype)
    results = {
        r.name: r
        for r in model_suite.run_shape(shape, "mvar", "training step", CPU, 0.01, extra=(Shifted(),))
    }
    wrong = results["plain, shifted"]
    assert wrong.timing is None and wrong.reason.startswith("refused: ")
    assert all(
        results[name].timing.median > 0
        for name in (model_suite.PLAIN, "plain, SDPA per scale", "ours", "ours, checkpointed")
    )
    assert "no backward on a CPU" in results["plain, FlexAttention, compiled"].reason
    assert results["plain, NATTEN, compiled library"].reason
    records = model_suite.rows(list(results.values()))
    plain = next(r for r in records if r["competitor"] == model_suite.PLAIN)
    assert plain["speedup"] == 1 and any("refused" in line for line in report.times(records, "plain"))


def test_sampling_is_gated_and_says_what_cannot_run(monkeypatch):
    def results():
        return {(r.name, r.work): r for r in sampling_suite.run_shape(TINY, CPU, 0.01, ("auto", "triton"))}

    found = results()
    assert {work for _, work in found} == {"last step", "whole run"}
    assert (
        found[("VAR, KV cache", "last step")].timing.median > 0
        and found[("MVAR auto", "whole run")].timing.median > 0
    )
    assert (
        "TRITON_INTERPRET" in found[("MVAR triton", "last step")].reason
        or "triton" in found[("MVAR triton", "last step")].reason
    )
    monkeypatch.setattr("benchmarks.suites.plain_pytorch.DenseMask", Shifted)
    refused = results()[("MVAR auto", "last step")]
    assert refused.timing is None and refused.reason.startswith("refused: logits differ")


def test_cache_bytes_are_those_of_a_cache():
    model = TINY.build("var", CPU).eval()
    labels, inputs, _ = example(model, 2, CPU)
    state = model.new_state(labels)
    for scale in range(len(TINY.sides)):
        model.step(state, sampling_suite._scale_input(model, inputs, scale), scale)
    held = sum(
        tensor.numel() * tensor.element_size() for pair in state.cache.entries.values() for tensor in pair
    )
    assert (
        held
        == jobs.cache_bytes(dataclasses.replace(TINY, batch=2), guided=False)
        == jobs.cache_bytes(TINY, guided=True)
    )


def test_peaks_of_fresh_processes():
    shape = {"depth": 1, "pixels": "256px", "width": 512, "batch": 2, "dtype": "float32", "vocab_size": 64}
    found = fresh.run("train", arch="var", way="plain, scores kept", device="cpu", **shape)
    held = memory_suite.counted(jobs.shape_of(**shape), "var", "plain, scores kept").bytes
    # Weights, gradients and two moments, and what autograd holds, are all there at some moment of a step.
    assert found["peak_bytes"] >= 4 * found["weights"] + 0.8 * held
    assert found["peak_bytes"] <= 4 * found["weights"] + 4 * 2 * held and list(found["seconds"]) == [
        "weights",
        "first step",
        "step",
    ]


def test_a_job_that_fails_says_so():
    with pytest.raises(RuntimeError, match=r"train failed: .*KeyError.*'swin'"):
        fresh.run(
            "train", arch="swin", way="ours", device="cpu", depth=1, pixels="256px", batch=1, dtype="float32"
        )


def test_memory_tables_and_picture(tmp_path):
    records = memory_suite.activation_records(quick=True)
    shape = {
        "depth": 1,
        "pixels": "256px",
        "width": 64,
        "batch": 1,
        "dtype": "float32",
        "vocab_size": 32,
        "sides": [1, 2, 4],
    }
    records += memory_suite.peak_records(CPU, shape, {**shape, "channels": 32}, ways=())
    records += memory_suite.table_two(records)
    text = "\n".join(memory_suite.lines(records))
    assert (
        "| VAR d16, 256px, batch 1, bfloat16 | ours | 248.9 | 0.40 |" in text
        and "| ours, checkpointed | 47.4 |" in text
    )
    assert (
        "| training | VAR | plain, scores kept | 34,319 |" in text
        and "| sampling | MVAR | no cache | 3,846 |" in text
    )
    assert "of VAR's" in text
    drawn = [r for r in records if r["kind"] == "drawing"]
    assert all(r["peak_bytes"] >= max(r["peaks"]["last scale"], r["peaks"]["decoder"]) > 0 for r in drawn)
    (picture,) = plots.memory(tmp_path / "memory.png", records, "here")
    assert picture.stat().st_size > 10_000
    json.dumps(records)


def test_table_two_adds_up():
    (row,) = published.training(1_000_000, {("var", "ours"): 2_000_000})
    assert row["counted_mb"] == 16 + 32 * 2 and row["paper_mb"] == 34_319


@pytest.mark.parametrize("arch", ["var", "mvar"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_flops_by_formula_are_those_counted(arch, checkpointed):
    model = TINY.build(arch, CPU)
    model.gradient_checkpointing = checkpointed
    with FlopCounterMode(display=False) as counter:
        model.loss(*example(model, 2, CPU)).backward()
    pairs = model.neighborhood(range(len(TINY.sides))).attended_pairs()
    assert counter.get_total_flops() == 2 * (
        product_flops(model.config, checkpointed) + attention_flops(model.config, pairs, checkpointed)
    )


def test_costs_grow_as_they_should():
    small, twice = (costs(dataclasses.replace(TINY, depth=depth, width=64), "mvar") for depth in (1, 2))
    assert (
        twice.product_flops > 1.8 * small.product_flops - 1e9
        and twice.attention_flops == 2 * small.attention_flops
    )
    assert twice.moved > small.moved > 0 and small.fixed_moved > 0 and small.overwork >= 1
    real = TINY.build("mvar", CPU)
    assert small.held == memory_suite.counted(TINY, "mvar", "ours").bytes and small.parameters == sum(
        p.numel() for p in real.parameters()
    )


def test_estimates_follow_their_assumptions():
    given = scaling.Assumptions()

    def estimate(gpus, card="h100", **changes):
        return scaling.estimate(
            16, "256px", "mvar", scaling.CARDS[card], gpus, dataclasses.replace(given, **changes)
        )

    one, eight = estimate(1), estimate(8)
    assert (
        one.plan == "one GPU"
        and one.sent == 0
        and eight.plan == "DDP"
        and eight.memory < one.memory <= 0.92 * 80e9
    )
    assert one.epoch_hours / 8 <= eight.epoch_hours <= one.epoch_hours / 4
    assert estimate(8, matmul_efficiency=0.3).epoch_hours > eight.epoch_hours
    assert estimate(8, hidden_share=0.0).exposed > eight.exposed == 0
    small = dataclasses.replace(scaling.CARDS["h100"], memory=5e9)
    assert scaling.estimate(16, "256px", "mvar", small, 1, given) is None
    sharded = scaling.estimate(16, "256px", "mvar", small, 8, given)
    assert (
        sharded.plan == "sharded"
        and sharded.micro < eight.micro
        and sharded.sent > eight.sent
        and sharded.memory <= 0.92 * 5e9
    )
    tight = scaling.estimate(16, "256px", "mvar", dataclasses.replace(small, memory=1.55e9), 8, given)
    assert tight.plan == "sharded, checkpointed" and tight.compute > sharded.compute


def test_scaling_prints_its_assumptions():
    result = CliRunner().invoke(
        scaling.main,
        ["--depth", "16", "--pixels", "256px", "--gpus", "8", "--matmul-efficiency", "0.5", "--gpu", "a100"],
    )
    assert result.exit_code == 0, result.output
    assert "ON PAPER, not measured: a100" in result.output and "matmul_efficiency 0.5" in result.output
    assert (
        "| VAR-d16 | 256px | 8 | DDP |" in result.output and "| MVAR-d16 | 256px | 8 | DDP |" in result.output
    )


def test_bars(tmp_path):
    shared = {"case": "a", "direction": "forward", "reason": "", "median_ms": 2.0}
    records = [{**shared, "competitor": name, "speedup": speed} for name, speed in (("x", 1), ("y", 2))]
    (picture,) = plots.bars(tmp_path / "model.png", records, "x = 1", "here")
    assert picture.stat().st_size > 8_000 and plots.bars(tmp_path / "none.png", [], "x", "here") == []


def test_attention_of_var_is_a_case():
    from benchmarks.core.cases import Case
    from benchmarks.core.machine import Ceilings
    from benchmarks.suites.attention import run_case

    case = Case("VAR", (1, 2, 3), heads=1, head_dim=8, causal=True)
    assert case.attended_pairs == 1 * 1 + 4 * 5 + 9 * 14
    (result,) = run_case(case, [Ours("sdpa")], CPU, 0.001, Ceilings(1e9, {torch.float32: 1e9}))
    assert result.timing is not None and result.error < 1e-6


def test_the_command_runs_several_suites(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.suites.model.shapes", lambda device, quick: [TINY])
    monkeypatch.setattr("benchmarks.suites.sampling.shapes", lambda device, quick: [TINY])
    arguments = [
        "--suite",
        "model",
        "--suite",
        "sampling",
        "--device",
        "cpu",
        "--seconds",
        "0.001",
        "--out",
        str(tmp_path),
    ]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    for name, competitors in (
        ("model", {model_suite.PLAIN, "ours"}),
        ("sampling", {"VAR, KV cache", "MVAR triton"}),
    ):
        written = json.loads((tmp_path / f"{name}.json").read_text())
        assert (
            competitors <= {record["competitor"] for record in written["records"]}
            and written["machine"]["torch"]
        )
        assert (
            tmp_path / f"{name}.png"
        ).stat().st_size > 8_000 and f"written to {tmp_path}: {name}.csv" in result.output


def test_memory_is_written_as_it_is_measured(monkeypatch):
    monkeypatch.setattr(memory_suite, "activation_records", lambda quick: [])
    monkeypatch.setattr(memory_suite, "table_two", lambda records: [])
    monkeypatch.setattr(
        memory_suite,
        "peak_records",
        lambda *arguments: iter([{"kind": "training step"}, {"kind": "drawing"}]),
    )
    assert [len(records) for records in memory_suite.run(CPU, quick=True)] == [0, 1, 2]
