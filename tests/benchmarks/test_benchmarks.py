"""The benchmarks measure what they say: a wrong kernel is refused, absent peers are named, the tuner keeps what is fastest."""

import dataclasses
import importlib.metadata
import importlib.util
import json
import math

import pytest
import torch
from click.testing import CliRunner

from benchmarks import tune
from benchmarks.__main__ import main
from benchmarks.core import compare, plots, report
from benchmarks.core.cases import grid, pyramid
from benchmarks.core.machine import Ceilings
from benchmarks.core.measure import Timing, measure
from benchmarks.estimates import predict
from benchmarks.suites.attention import Result, run_case
from benchmarks.suites.baselines import Baseline, DenseMask, Natten, Ours, baselines
from mvar_kernels.backends.triton import tile_table
from mvar_kernels.backends.triton.tile_choice import tile_row
from mvar_kernels.backends.triton.tile_config import Config

CPU = torch.device("cpu")
TRITON = (
    tuple(map(int, importlib.metadata.version("triton").split(".")[:2]))
    if importlib.util.find_spec("triton")
    else (0, 0)
)
CEILINGS = Ceilings(1e10, {torch.float32: 1e11})


class Shifted(Baseline):
    """Our windows moved by one column: nearly right, and wrong."""

    name = "shifted"

    def prepare(self, case, device):
        right = Ours("sdpa").prepare(case, device)
        return lambda query, key, value, factor: right(
            query, key.roll(1, dims=1), value.roll(1, dims=1), factor
        )


@pytest.mark.parametrize("direction", ["forward", "both"])
def test_a_wrong_kernel_is_refused_not_timed(direction):
    case = grid(6, kernel_size=3, heads=2, head_dim=8)
    case = case.both() if direction == "both" else case
    results = {
        r.name: r for r in run_case(case, [Shifted(), DenseMask(), Ours("tiled")], CPU, 0.001, CEILINGS)
    }
    assert results["shifted"].timing is None and results["shifted"].reason.startswith(
        "refused: differs from float64"
    )
    assert results["mvar tiled"].timing.median > 0 and results["mvar tiled"].error < 1e-5


def test_ratios_are_taken_within_rounds():
    """A machine that gets slower in the middle of a run leaves them alone, unlike the ratio of two medians."""
    one, two = (
        Timing(0, 0, 0, 0, 5, rounds=rounds)
        for rounds in ((1.0, 1.0, 9.0, 9.0, 9.0), (2.0, 2.0, 18.0, 18.0, 18.0))
    )
    assert two.over(one) == 2 and one.over(two) == 0.5
    assert two.beyond(one, 2) == 0 and two.beyond(one, 1) == 9
    with pytest.raises(ValueError, match="not timed in the same rounds: 5 and 0"):
        one.over(Timing(1.0, 1.0, 1.0, 1.0, 5))
    timings = measure({"a": lambda: None, "b": lambda: sum(range(20_000))}, CPU, seconds=0.01, least_calls=4)
    assert (
        4 <= len(timings["a"].rounds) == len(timings["b"].rounds) <= 20
        and timings["b"].over(timings["a"]) > 1
    )


def test_wrong_gradients_are_refused():
    class Detached(Baseline):
        name = "gradient of half"

        def prepare(self, case, device):
            right = Ours("sdpa").prepare(case, device)
            return lambda query, key, value, factor: (
                (right(query, key, value, factor) + right(query, key, value, factor).detach()) / 2
            )

    case = grid(4, kernel_size=3, heads=1, head_dim=8).both()
    (result,) = run_case(case, [Detached()], CPU, 0.001, CEILINGS)
    assert result.timing is None and "refused" in result.reason


def test_who_cannot_run_says_why(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    assert "not installed" in Natten(compiled=False).can_run(grid(8), CPU)
    reasons = {b.name: b.can_run(pyramid("1024px").both(), CPU) for b in baselines()}
    assert (
        "no backward on a CPU" in reasons["FlexAttention, compiled"]
        and "dense mask" in reasons["SDPA, dense mask"]
    )
    assert reasons["mvar tiled"] is None and "triton" in reasons["mvar triton"]


def test_counts_and_derived_figures():
    case = grid(8, kernel_size=3, heads=2, head_dim=16)
    assert (
        case.attended_pairs == 64 * 9
        and case.flops == 4 * 576 * 2 * 16
        and case.both().flops == 14 * 576 * 2 * 16
    )
    assert case.least_bytes == 2 * 64 * (4 * 16 * 4 + 4) and case.both().least_bytes == 2 * 64 * (
        12 * 16 * 4 + 8
    )
    timing = Timing(2e-3, 1e-3, 3e-3, 1.0, 5, rounds=(2e-3,))
    slow, fast = (
        Result(case, DenseMask.name, timing),
        Result(case, "x", Timing(1e-3, 1e-3, 1e-3, 1.0, 5, rounds=(1e-3,)), time_over_floor=2.0),
    )
    record = report.rows([slow, fast])[1]
    assert record["speedup"] == 2 and math.isclose(record["flop_bound_speedup"], 64 * 64 / 576)
    assert math.isclose(record["useful_gflops"], case.flops / 1e-3 / 1e9)


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed (it exists for Linux only)"
)
@pytest.mark.skipif(TRITON < (3, 3), reason="compiling ahead of time needs triton 3.3 or newer")
def test_predictions_count_what_is_compiled():
    case = grid(16, batch=4, heads=2, dtype=torch.bfloat16).both()
    found = {p.kernel: p for p in predict.predict(case, predict.GPUS["H200"])}
    assert set(found) == {"forward", "dq", "dkdv"} and all(
        p.tiles == 4 and p.issue_seconds > 0 for p in found.values()
    )
    assert sum(p.bytes_seconds for p in found.values()) >= case.least_bytes / predict.GPUS["H200"].bandwidth
    twice = next(iter(predict.predict(dataclasses.replace(case, batch=8), predict.GPUS["H200"])))
    assert math.isclose(twice.issue_seconds, 2 * found["forward"].issue_seconds)


def test_slopes_of_known_growth():
    records = [
        {"case": f"grid {side}", "kernel_size": 7, "direction": "forward", "competitor": name, "reason": "", "tokens": side**2, "batch": 1,
         "median_ms": (side**2) ** power}
        for name, power in (("linear", 1), ("square", 2))
        for side in (16, 32, 64, 128)
    ]  # fmt: skip
    lines = list(report.growth(records))
    assert "N^1.00" in lines[0] and "x 4.00" in lines[0] and "N^2.00" in lines[1] and "x 16.00" in lines[1]


def test_the_command_writes_its_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "benchmarks.suites.table.attention_cases",
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
    assert triton["reason"] and "median_ms" not in triton
    assert len((tmp_path / "attention.csv").read_text().splitlines()) == 1 + len(written["records"])
    assert "| mvar tiled |" in (tmp_path / "attention.md").read_text()


def test_changes_beyond_noise_are_told():
    key = {
        "case": "grid 8",
        "kernel_size": 7,
        "batch": 1,
        "heads": 8,
        "head_dim": 64,
        "dtype": "float32",
        "cosine": False,
        "direction": "forward",
    }

    def run(**times):
        records = [
            {**key, "competitor": n, "reason": "", "median_ms": t, "p20_ms": 0.9 * t, "p80_ms": 1.1 * t}
            for n, t in times.items()
        ]
        return {"machine": {"device": "x"}, "records": records}

    lines = list(compare.changes(run(a=1.0, b=1.0, gone=1.0), run(a=1.05, b=2.0, fresh=1.0)))
    assert lines == [
        "grid 8 k7 forward, b: 1.000 -> 2.000 ms (slower, x 2.00)",
        "1 of 2 shared entries changed beyond noise; 1 are new, 1 gone",
    ]


def test_plots_show_what_was_measured(tmp_path):
    written = []
    for side in (16, 32):
        for name, cost in ((DenseMask.name, 4e-3), ("mvar auto", 1e-3)):
            written.append(
                Result(
                    grid(side), name, Timing(cost, cost, cost, 1.0, 5, rounds=(cost,)), time_over_floor=1.0
                )
            )
    paths = plots.draw(tmp_path, report.rows(written), "here")
    assert [path.name for path in paths] == ["growth.png", "speedup.png"] and all(
        path.stat().st_size > 10_000 for path in paths
    )
    assert plots.draw(tmp_path, [], "here") == []


def test_tuner_takes_what_is_clearly_faster_and_rewrites_the_rows():
    start = tile_row("sm_90", 64, 2, False)._replace(family="sm_90")
    wanted = Config(4, 8, 128, 8, 3)
    trials = []

    def seconds(
        row, kernel
    ):  # a tenth less for every number that is as wanted; another kernel's do not count
        return 1.0 - 0.1 * sum(have == want for have, want in zip(row.dq, wanted)) if kernel == "dq" else 1.0

    found = start
    for kernel in tune.KERNELS:
        found = tune.best(found, kernel, seconds, trials, lambda: False)
    assert found.dq == wanted and found.forward == start.forward and found.dkdv == start.dkdv
    assert sum(trial["chosen"] for trial in trials) == 3 and len(
        {(t["kernel"], t["config"]) for t in trials}
    ) == len(trials)
    assert tune.best(start, "dq", seconds, [], lambda: True) == start, "without time nothing is tried"
    namespace = {}
    exec(compile(tune.render((*tile_table.ROWS, found)), "tile_table.py", "exec"), namespace)
    assert namespace["ROWS"] == (*tile_table.ROWS, found)
    with tune.trying(found):
        assert tile_row("sm_90", 64, 2, False).dq == wanted
    assert tile_row("sm_90", 64, 2, False).dq == start.dq
