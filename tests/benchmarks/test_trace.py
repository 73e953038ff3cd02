"""Traces count what is dispatched: kernels, weights read, copies between devices, memory that is in use."""

import torch
import torch.nn.functional as F

from benchmarks.core.shapes import Shape
from benchmarks.core.trace import live_bytes, trace
from benchmarks.suites import engine
from mvar_models.networks.state import KVCache


def test_views_and_allocations_are_no_kernels():
    def work():
        rows = torch.ones(2, 3)
        torch.empty(5)
        rows.t().unsqueeze(0).expand(4, 3, 2).unbind(0)
        return rows + 1

    assert trace(work).kernels == {"ones": 1, "add": 1}


def test_weights_count_each_time_a_product_reads_them():
    weight, table, inputs = torch.ones(4, 3), torch.ones(10, 3), torch.ones(2, 3)

    def work():
        F.linear(F.linear(inputs, weight), weight.t())
        F.embedding(torch.tensor([1]), table)
        return weight + 1

    assert trace(work, [weight, table]).weight_bytes == 2 * 4 * 3 * 4


def test_copies_between_devices_and_reads_of_values():
    def work():
        there = torch.ones(3).to("meta")
        torch.nonzero(torch.ones(3))
        return there, bool(torch.ones(1) > 0)

    found = trace(work)
    assert found.copies == ["cpu to meta"]
    assert found.reads == ["nonzero", "_local_scalar_dense"]


def test_memory_in_use():
    kept = []

    def hold():
        kept.append(torch.empty(10))
        torch.empty(100)

    def drop():
        kept.clear()

    assert live_bytes([hold, drop]) == (440, [40, 0])


def test_bytes_of_caches():
    """Six scales by hand: 1 + 4 + 9 tokens and 16 at the last, two rows, two heads of 64, bfloat16."""
    shape = Shape(2, width=128, sides=(1, 2, 3, 4), dtype=torch.bfloat16)
    token = 2 * 2 * 128 * 2
    held, allocated, peak = engine.cache_bytes(shape, KVCache(length=30, last=16))
    assert (held, allocated, peak) == (2 * 14 * token, (14 + 30) * token, (14 + 30) * token)
    held, allocated, peak = engine.cache_bytes(shape, KVCache())
    assert held == allocated == 2 * 30 * token
    assert peak > held


def test_the_cache_is_as_small_as_it_should_be():
    """Against the cache that is concatenated: d16 and d30 at 256 px, d16 at 512 px."""
    bounds = {Shape(16): (0.625, 0.65), Shape(30): (0.625, 0.64), Shape(16, "512px"): (0.545, 0.58)}
    for shape, (most_held, most_allocated) in bounds.items():
        config = shape.config("var")
        plain = engine.cache_bytes(shape, KVCache())
        ours = engine.cache_bytes(shape, KVCache(length=config.length, last=config.sides[-1] ** 2))
        assert ours[0] <= most_held * plain[0]
        assert ours[2] <= most_allocated * plain[1], "compared with what the plain one holds at the end"
