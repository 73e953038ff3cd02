"""Timings, counts and derived figures are what they say."""

import math

import pytest
import torch

from benchmarks.core import attention_report, compare
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
