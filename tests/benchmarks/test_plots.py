"""Plots show what was measured: titles, labels and values are read off the figures."""

import pytest

from benchmarks.core import attention_report, plots
from benchmarks.core.attention_report import Result
from benchmarks.core.cases import grid
from benchmarks.core.measure import Timing
from benchmarks.peers.baselines import DenseMask

pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install '.[bench]'")


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
