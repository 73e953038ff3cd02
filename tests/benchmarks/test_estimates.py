"""Costs and estimates: formulas agree with counted runs and grow as they should."""

import dataclasses

import pytest
import torch
from click.testing import CliRunner

from benchmarks.core.activations import example
from benchmarks.core.shapes import Shape
from benchmarks.estimates import scaling
from benchmarks.estimates.costs import FlopCounter, attention_flops, costs, moved_bytes, product_flops
from benchmarks.suites import memory

CPU = torch.device("cpu")
TINY = Shape(1, width=64, vocab_size=32, sides=(1, 2, 4, 9, 10, 11, 12, 13, 14))
DEEPER = dataclasses.replace(TINY, depth=2)


@pytest.mark.parametrize("shape", [TINY, DEEPER], ids=lambda shape: f"depth {shape.depth}")
@pytest.mark.parametrize("arch", ["var", "mvar"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_flops_by_formula_are_those_counted(arch, checkpointed, shape):
    model = shape.build(arch, CPU)
    model.gradient_checkpointing = checkpointed
    with FlopCounter() as counter:
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
