"""Timings, counts and plots are what they say."""

import math

import pytest
import torch

from benchmarks.core import attention_report, compare, plots
from benchmarks.core.attention_report import Result
from benchmarks.core.cases import grid
from benchmarks.core.measure import Timing, measure
from benchmarks.peers.baselines import DenseMask

CPU = torch.device("cpu")


def timing(milliseconds):
    """A timing of one round without spread."""
    seconds = milliseconds * 1e-3
    return Timing(seconds, seconds, seconds, 1.0, 5, rounds=(seconds,))


def test_ratios_are_taken_within_rounds():
    """A machine that slows down in the middle of a run does not change them."""
    one = Timing(0, 0, 0, 0, 5, rounds=(1.0, 1.0, 9.0, 9.0, 9.0))
    two = Timing(0, 0, 0, 0, 5, rounds=(2.0, 2.0, 18.0, 18.0, 18.0))
    assert two.over(one) == 2
    assert one.over(two) == 0.5
    assert two.beyond(one, 2) == 0
    assert two.beyond(one, 1) == 9
    with pytest.raises(ValueError, match="5 and 0"):
        one.over(Timing(1.0, 1.0, 1.0, 1.0, 5))


def test_competitors_take_turns():
    timings = measure({"a": lambda: None, "b": lambda: sum(range(20_000))}, CPU, seconds=0.01, least_calls=4)
    assert 4 <= len(timings["a"].rounds) <= 20
    assert len(timings["b"].rounds) == len(timings["a"].rounds)
    assert timings["b"].over(timings["a"]) > 1


def test_counts_of_a_case():
    case = grid(8, kernel_size=3, heads=2, head_dim=16)
    assert case.attended_pairs == 64 * 9
    assert case.flops == 4 * 576 * 2 * 16
    assert case.both().flops == 14 * 576 * 2 * 16
    assert case.least_bytes == 2 * 64 * (4 * 16 * 4 + 4)
    assert case.both().least_bytes == 2 * 64 * (12 * 16 * 4 + 8)


def test_figures_derived_from_a_timing():
    case = grid(8, kernel_size=3, heads=2, head_dim=16)
    results = [
        Result(case, DenseMask.name, timing(2)),
        Result(case, "x", timing(1), time_over_floor=2.0),
        Result(case, "y", None, "absent"),
    ]
    _, fast, absent = attention_report.records(results)
    assert fast["speedup"] == 2
    assert fast["median_ms"] == 1
    assert math.isclose(fast["flop_bound_speedup"], 64 * 64 / 576)
    assert math.isclose(fast["useful_gflops"], case.flops / 1e-3 / 1e9)
    assert math.isclose(fast["gb_per_s"], case.least_bytes / 1e-3 / 1e9)
    assert absent["reason"] == "absent"
    assert "median_ms" not in absent


def test_slopes_of_known_growth():
    base = {"kernel_size": 7, "direction": "forward", "reason": "", "batch": 1}
    records = [
        {
            **base,
            "case": f"grid {side}",
            "competitor": name,
            "tokens": side**2,
            "median_ms": side ** (2 * power),
        }
        for name, power in (("linear", 1), ("square", 2))
        for side in (8, 16, 32, 64, 128)
    ]
    linear, square = attention_report.growth(records)
    assert "N^1.00" in linear
    assert "x 4.00" in linear
    assert "N^2.00" in square
    assert "x 16.00" in square
    assert "from 256 to 16384" in linear, "the grid of 64 tokens says nothing about growth"


def test_changes_beyond_noise_are_reported():
    key = dict.fromkeys(("kernel_size", "batch", "heads", "head_dim", "dtype", "cosine"), 1)
    key |= {"case": "grid 8", "direction": "forward"}

    def run(**medians):
        records = [
            {**key, "competitor": name, "reason": "", "median_ms": t, "p20_ms": 0.9 * t, "p80_ms": 1.1 * t}
            for name, t in medians.items()
        ]
        return {"machine": {"device": "x"}, "records": records}

    slower, summary = compare.changes(run(a=1.0, b=1.0, gone=1.0), run(a=1.05, b=2.0, fresh=1.0))
    assert ", b: 1.000 -> 2.000 ms (slower, x 2.00)" in slower
    assert summary.startswith("1 of 2 ")
    assert "1 are new, 1 gone" in summary
    stopped = run(a=1.0)
    stopped["records"][0]["reason"] = "absent"
    assert "now absent" in next(compare.changes(run(a=1.0), stopped))
    assert "before: absent" in next(compare.changes(stopped, run(a=1.0)))


def widths(axis):
    return [round(bar.get_width(), 6) for bar in axis.patches]


def labels(ticks):
    return [tick.get_text() for tick in ticks]


@pytest.fixture
def attention_records():
    results = []
    for side, dense, ours in ((16, 4e-3, 2e-3), (32, 64e-3, 8e-3)):
        for name, cost in ((DenseMask.name, dense), ("mvar auto", ours)):
            timing = Timing(cost, cost, cost, 1.0, 5, rounds=(cost,))
            results.append(Result(grid(side), name, timing, time_over_floor=1.0))
    return attention_report.records(results)


def test_growth(attention_records):
    figure = plots.growth_figure(attention_records)
    forward, both = figure.axes
    assert forward.get_title().startswith("forward")
    assert forward.get_xlabel() == "tokens"
    assert (forward.get_xscale(), forward.get_yscale()) == ("log", "log")
    series = {line.get_label(): line.get_xydata().tolist() for line in forward.lines}
    assert series == {
        "SDPA, dense mask: N^2.00": [[256, 4], [1024, 64]],
        "mvar auto: N^1.00": [[256, 2], [1024, 8]],
    }
    assert not both.lines, "nothing was measured with backward"


def test_speedup(attention_records):
    (axis,) = plots.speedup_figure(attention_records).axes
    bound = [256**2, 1024**2]
    pairs = [record["attended_pairs"] for record in attention_records[::2]]
    assert widths(axis) == [*(round(b / p, 6) for b, p in zip(bound, pairs)), 2, 8]
    assert [label.split(" k7")[0] for label in labels(axis.get_yticklabels())] == ["grid 16", "grid 32"]


def test_bars():
    shared = {"case": "a", "direction": "forward", "reason": "", "median_ms": 1_234.0}
    records = [{**shared, "competitor": name, "speedup": speed} for name, speed in (("x", 1.0), ("y", 2.0))]
    records.append({**shared, "competitor": "z", "reason": "absent"})
    (axis,) = plots.bars_figure(records, "x = 1").axes
    assert widths(axis) == [1, 2]
    assert labels(axis.get_yticklabels()) == ["a, forward: x", "a, forward: y"]
    assert [text.get_text().strip() for text in axis.texts] == ["1,234 ms", "1,234 ms"]
    assert "x = 1" in axis.get_xlabel()


def test_memory():
    held = {"kind": "activations", "case": "d16", "way": "ours", "arch": "var", "bytes": 10e6}
    drawing = {"kind": "drawing", "case": "d2", "arch": "mvar", "weights": 3e6, "vqvae": 1e6}
    records = [
        {**held, "parts": {"block.attention": 6e6, "block.mlp": 3.9e6, "tiny": 0.1e6}},
        {**drawing, "peaks": {"weights": 99e6, "last scale": 7e6, "decoder": 8e6}},
    ]
    parts, peaks = plots.memory_figure(records).axes
    assert parts.get_title() == "d16"
    assert labels(parts.get_legend().texts) == ["block.attention", "block.mlp", "the rest"]
    assert widths(parts) == [6, 3.9, 0.1]
    assert labels(peaks.get_yticklabels()) == ["MVAR, last scale", "MVAR, decoder"]
    assert widths(peaks) == [7, 8, 4, 4], "peaks without that of drawing weights, and weights twice"


def test_nothing_measured_draws_nothing(tmp_path):
    assert plots.growth_figure([]) is None
    assert plots.speedup_figure([]) is None
    assert plots.bars_figure([], "x = 1") is None
    assert plots.memory_figure([]) is None
    assert plots.save(None, tmp_path / "none.png", "title") == []


def test_a_saved_figure_has_its_title(tmp_path, attention_records):
    from PIL import Image

    figure = plots.growth_figure(attention_records)
    assert plots.save(figure, tmp_path / "growth.png", "on this machine") == [tmp_path / "growth.png"]
    assert figure.get_suptitle() == "on this machine"
    with Image.open(tmp_path / "growth.png") as image:
        assert image.size == ((11 * 130), round(4.5 * 130))
