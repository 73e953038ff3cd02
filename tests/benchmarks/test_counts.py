"""Counted costs, traces and estimates: formulas agree with runs and with figures by hand."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.core.activations import example
from benchmarks.core.shapes import Shape
from benchmarks.core.trace import live_bytes, trace
from benchmarks.estimates import scaling
from benchmarks.estimates.costs import attention_flops, costs, moved_bytes, product_flops
from benchmarks.suites import engine, memory
from mvar_models.networks.state import KVCache

CPU = torch.device("cpu")
TINY = Shape(1, width=64, vocab_size=32, sides=(1, 2, 4, 9, 10, 11, 12, 13, 14))
DEEPER = dataclasses.replace(TINY, depth=2)


@pytest.mark.parametrize("shape", [TINY, DEEPER], ids=lambda shape: f"depth {shape.depth}")
@pytest.mark.parametrize("arch", ["var", "mvar"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_flops_by_formula_are_those_counted(arch, checkpointed, shape):
    model = shape.build(arch, CPU)
    model.gradient_checkpointing = checkpointed
    with FlopCounterMode(display=False) as counter:
        model.loss(*example(model, 2, CPU)).backward()
    pairs = model.neighborhood(range(len(TINY.sides))).attended_pairs()
    per_image = product_flops(model.config, checkpointed) + attention_flops(model.config, pairs, checkpointed)
    assert counter.get_total_flops() == 2 * per_image


def test_costs_grow_with_depth():
    """Nearly twice for two blocks instead of one; embedding and head are the rest."""
    one, two = costs(TINY, "mvar"), costs(DEEPER, "mvar")
    assert 1.8 * one.product_flops < two.product_flops < 2 * one.product_flops
    assert two.attention_flops == 2 * one.attention_flops
    assert 1.5 * one.moved < two.moved < 2 * one.moved
    assert one.fixed_moved < two.fixed_moved < 2 * one.fixed_moved, "most is the class embedding's gradient"
    assert 1.5 * one.held < two.held < 2 * one.held
    assert one.parameters < two.parameters < 2 * one.parameters
    assert two.overwork == one.overwork >= 1


def test_costs_are_per_image_and_per_step():
    """The two parts of `moved` predict a batch size that they were not counted at."""
    cost, model = costs(TINY, "mvar"), TINY.build("mvar", CPU)
    for batch in (2, 5):
        moved = moved_bytes(model, model.loss, batch, torch.float32)
        assert moved == pytest.approx(cost.fixed_moved + batch * cost.moved, rel=0.01)
    assert cost.held == memory.counted(TINY, "mvar", "ours").bytes
    assert cost.parameters == sum(parameter.numel() for parameter in model.parameters())


def estimate(gpus, card=scaling.CARDS["h100"], memory=None, **changes):
    """MVAR-d16 at 256 px under the default assumptions, with changes."""
    card = card if memory is None else dataclasses.replace(card, memory=memory)
    given = dataclasses.replace(scaling.Assumptions(), **changes)
    return scaling.estimate(16, "256px", "mvar", card, gpus, given)


def test_estimates_follow_their_assumptions():
    one, eight = estimate(1), estimate(8)
    assert (one.plan, one.sent) == ("one GPU", 0)
    assert eight.plan == "DDP"
    assert eight.memory < one.memory <= 0.92 * 80e9
    assert one.epoch_hours / 8 <= eight.epoch_hours <= one.epoch_hours / 4
    assert estimate(8, matmul_efficiency=0.3).epoch_hours > eight.epoch_hours
    assert eight.exposed == 0
    assert estimate(8, hidden_share=0.0).exposed > 0


def test_estimates_choose_the_first_plan_that_fits():
    ddp = estimate(8)
    assert estimate(1, memory=5e9) is None
    sharded = estimate(8, memory=5e9)
    assert sharded.plan == "sharded"
    assert sharded.micro < ddp.micro
    assert sharded.sent > ddp.sent
    assert sharded.memory <= 0.92 * 5e9
    tight = estimate(8, memory=1.55e9)
    assert tight.plan == "sharded, checkpointed"
    assert tight.compute > sharded.compute


def test_scaling_prints_its_assumptions():
    options = [
        "--depth",
        "16",
        "--pixels",
        "256px",
        "--gpus",
        "8",
        "--matmul-efficiency",
        "0.5",
        "--gpu",
        "a100",
    ]
    result = CliRunner().invoke(scaling.main, options)
    assert result.exit_code == 0, result.output
    assert "not measured: a100" in result.output
    assert "matmul_efficiency 0.5" in result.output
    assert "| VAR-d16 | 256px | 8 | DDP |" in result.output
    assert "| MVAR-d16 | 256px | 8 | DDP |" in result.output


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
