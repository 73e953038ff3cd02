"""Suites of whole models refuse wrong attention, measure peaks in fresh processes, and write tables."""

import dataclasses
import json

import pytest
import torch
from click.testing import CliRunner

from benchmarks.__main__ import main
from benchmarks.core import plots, report
from benchmarks.core.activations import example
from benchmarks.core.shapes import Shape
from benchmarks.peers.baselines import DenseMask
from benchmarks.suites import memory, memory_jobs, model, paper_memory, sampling
from mvar_models.networks.state import KVCache

CPU = torch.device("cpu")
TINY = Shape(1, width=64, vocab_size=32, sides=(1, 2, 4, 9, 10, 11, 12, 13, 14))


class Shifted(DenseMask):
    """The mask of windows one column further on: nearly right, and wrong."""

    name = "shifted"

    def bias(self, case, device):
        shifted = super().bias(case, device).roll(1, dims=1)
        return shifted.masked_fill_(torch.eye(case.tokens, dtype=torch.bool), 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_with_wrong_windows_is_refused_not_timed(dtype):
    shape = dataclasses.replace(TINY, dtype=dtype)
    results = {
        r.name: r for r in model.run_shape(shape, "mvar", "training step", CPU, 0.01, extra=(Shifted(),))
    }
    wrong = results["plain, shifted"]
    assert wrong.timing is None
    assert wrong.reason.startswith("refused")
    for name in (model.PLAIN, "plain, SDPA per scale", "ours", "ours, checkpointed"):
        assert results[name].timing is not None, results[name].reason
    assert "backward" in results["plain, FlexAttention, compiled"].reason
    assert results["plain, NATTEN, compiled library"].reason
    records = model.records(list(results.values()))
    plain = next(r for r in records if r["competitor"] == model.PLAIN)
    assert plain["speedup"] == 1
    assert any("refused" in line for line in report.times_table(records, "plain"))


def test_loss_and_gradients_that_are_not_numbers_are_refused():
    right = [torch.ones(()), torch.ones(3), torch.ones(3)]
    assert model.refusal(right, right, torch.float32) is None
    for index, what in enumerate(("loss", "positions", "q, k, v")):
        wrong = [value * float("nan") if index == place else value for place, value in enumerate(right)]
        assert what in model.refusal(wrong, right, torch.float32)


def test_sampling_is_gated_and_says_what_cannot_run(monkeypatch):
    def results():
        return {
            (r.name, r.work): r for r in sampling.run_shape(TINY, CPU, 0.01, ("auto", "triton"), channels=32)
        }

    first = results()
    assert {work for _, work in first} == {"last step", "whole run", "decoder"}
    assert first["VQVAE, float32", "decoder"].timing.median > 0
    assert first["VAR, KV cache", "last step"].timing.median > 0
    assert first["MVAR auto", "whole run"].timing.median > 0
    assert first["MVAR triton", "last step"].timing is None
    assert "CPU" in first["MVAR triton", "last step"].reason
    monkeypatch.setattr("benchmarks.peers.plain_pytorch.DenseMask", Shifted)
    refused = results()["MVAR auto", "last step"]
    assert refused.timing is None
    assert refused.reason.startswith("refused: logits")


@torch.no_grad()
def test_cache_bytes_are_those_of_a_cache():
    network = TINY.build("var", CPU).eval()
    labels, inputs, _ = example(network, 2, CPU)
    state, released, most = network.new_state(labels), KVCache(), 0
    for scale, side in enumerate(TINY.sides):
        network.step(state, sampling.scale_input(network, inputs, scale), scale)
        most = max(most, state.cache.num_bytes())
        for block in range(TINY.depth):
            released.extend(block, *torch.zeros(2, 2, side * side, network.config.num_heads, 64))
    for batch, guided in ((2, False), (1, True)):
        shape = dataclasses.replace(TINY, batch=batch)
        assert most == memory_jobs.cache_bytes(shape, guided)
        assert released.num_bytes() == memory_jobs.cache_bytes(shape, guided, released=True)


def test_peaks_of_fresh_processes():
    shape = {"depth": 1, "pixels": "256px", "width": 512, "batch": 2, "dtype": "float32", "vocab_size": 64}
    answer = memory_jobs.run_fresh("train", arch="var", way="plain, scores kept", device="cpu", **shape)
    held = memory.counted(Shape.from_json(**shape), "var", "plain, scores kept").bytes
    # Weights, gradients, two moments, and what autograd holds for two images exist at some moment of a step.
    assert answer["peak_bytes"] >= 4 * answer["weights"] + 0.8 * held
    assert answer["peak_bytes"] <= 4 * answer["weights"] + 4 * 2 * held
    assert list(answer["seconds"]) == ["weights", "first step", "step"]


def test_a_job_that_fails_says_so():
    shape = {"depth": 1, "pixels": "256px", "batch": 1, "dtype": "float32"}
    with pytest.raises(RuntimeError, match=r"train failed: .*'swin'"):
        memory_jobs.run_fresh("train", arch="swin", way="ours", device="cpu", **shape)
    with pytest.raises(ValueError, match=r"way .*'theirs'"):
        memory_jobs.loss_of(None, "theirs", torch.float32)


def test_memory_tables():
    records = memory.activation_records(quick=True)
    shape = {"depth": 1, "width": 64, "batch": 1, "dtype": "float32", "vocab_size": 32, "sides": [1, 2, 4]}
    records += memory.peak_records(CPU, shape, {**shape, "channels": 32}, ways=())
    records += memory.table_two(records)
    text = "\n".join(memory.tables(records))
    assert "| VAR d16, 256px, batch 1, bfloat16 | ours | 248.8 | 0.40 |" in text
    assert "| ours, checkpointed | 47.4 |" in text
    assert "| training | VAR | plain, scores kept | 34,319 |" in text
    assert "| sampling | MVAR | no cache | 3,846 |" in text
    drawn = [r for r in records if r["kind"] == "drawing"]
    assert [r["arch"] for r in drawn] == ["var", "mvar"]
    for record in drawn:
        assert record["peak_bytes"] == max(
            peak for name, peak in record["peaks"].items() if name != "weights"
        )
        assert record["peaks"]["decoder"] > 0
    ratio = drawn[1]["peak_bytes"] / drawn[0]["peak_bytes"]
    assert f"{ratio:.2f} of VAR's" in text
    parts, peaks = plots.memory_figure(records).axes
    assert len(parts.get_yticklabels()) == 8, "two architectures, four ways"
    assert len(peaks.get_yticklabels()) == 6, "two architectures, three phases"
    json.dumps(records)


def test_table_two_adds_up():
    (row,) = paper_memory.training(1_000_000, {("var", "ours"): 2_000_000})
    assert row["counted_mb"] == 16 + 32 * 2
    assert row["paper_mb"] == 34_319
    var, mvar = paper_memory.sampling(3_000_000, {"float32": 5_000_000})
    assert (var["counted_mb"], var["paper_mb"]) == (8, 10_882)
    assert (mvar["counted_mb"], mvar["paper_mb"]) == (3, 3_846)


def test_the_command_runs_several_suites(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.suites.model.shapes", lambda device, quick: [TINY])
    monkeypatch.setattr("benchmarks.suites.sampling.shapes", lambda device, quick: [TINY])
    figures = []
    monkeypatch.setattr(
        plots, "save", lambda figure, path, title: figures.append((path.name, figure)) or [path]
    )
    options = ["--device", "cpu", "--seconds", "0.001", "--out", str(tmp_path)]
    result = CliRunner().invoke(main, ["--suite", "model", "--suite", "sampling", *options])
    assert result.exit_code == 0, result.output
    wanted = {"model": {model.PLAIN, "ours"}, "sampling": {"VAR, KV cache", "MVAR triton"}}
    for name, competitors in wanted.items():
        written = json.loads((tmp_path / f"{name}.json").read_text())
        assert competitors <= {record["competitor"] for record in written["records"]}
        assert written["machine"]["torch"]
        assert f"{name}.csv, {name}.json, {name}.md, {name}.png" in result.output
        figure = next(figure for path, figure in reversed(figures) if path == f"{name}.png")
        timed = [record for record in written["records"] if not record["reason"]]
        compared = [record for record in timed if record["direction"] != "decoder"]  # which has no rival
        assert len(figure.axes[0].patches) == len(compared), "one bar per timed competitor"


def test_memory_is_yielded_as_it_is_measured(monkeypatch):
    monkeypatch.setattr(memory, "activation_records", lambda quick: [])
    monkeypatch.setattr(memory, "table_two", lambda records: [])
    peaks = [{"kind": "training step"}, {"kind": "drawing"}]
    monkeypatch.setattr(memory, "peak_records", lambda *arguments: iter(peaks))
    assert [len(records) for records in memory.measure_memory(CPU, quick=True)] == [0, 1, 2]
