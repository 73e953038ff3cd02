"""Control flow, barriers, and what the threads of a warp do together."""

import numpy as np
import pytest
import torch
from emulated import execute, integers, kernel, run_on
from emulated_gpu.faults import Fault
from emulated_gpu.parse import parse

RNG = np.random.default_rng(3)


def test_threads_part_and_meet_again():
    """Collatz steps: every thread loops as often as its own number asks, then all go on together."""
    start = np.arange(1, 33, dtype=np.uint32)
    body = """
    mov.b32 %r2, 0;
    $loop:
    setp.eq.u32 %p1, %r1, 1;
    @%p1 bra $done;
    and.b32 %r3, %r1, 1; setp.eq.u32 %p2, %r3, 1;
    @%p2 bra $odd;
    shr.u32 %r1, %r1, 1;
    bra $next;
    $odd:
    mad.lo.u32 %r1, %r1, 3, 1;
    $next:
    add.s32 %r2, %r2, 1;
    bra $loop;
    $done:
    add.s32 %r4, %r2, 1000;
    """

    def steps(n):
        count = 0
        while n != 1:
            n, count = (n // 2 if n % 2 == 0 else 3 * n + 1), count + 1
        return count

    got = execute(body, r1=start)
    assert got["r4"].tolist() == [1000 + steps(int(n)) for n in start]


def test_a_barrier_in_divergent_code_is_a_fault():
    body = """mov.u32 %r1, %tid.x; setp.lt.u32 %p1, %r1, 5;
    @%p1 bra $there;
    bar.sync 0;
    $there:
    mov.b32 %r2, 0;"""
    with pytest.raises(Fault, match="barrier in divergent code"):
        execute(body)


def test_warps_at_different_barriers_are_a_fault():
    body = """mov.u32 %r1, %tid.x; setp.lt.u32 %p1, %r1, 32;
    @%p1 bra $there;
    bar.sync 1;
    bra $end;
    $there:
    bar.sync 2;
    $end:
    mov.b32 %r2, 0;"""
    with pytest.raises(Fault, match="different places"):
        run_on(body, torch.zeros(1), threads=64)


@pytest.mark.parametrize(
    "mode, amount, source",
    [
        ("bfly", 5, lambda lane: lane ^ 5),
        ("down", 3, lambda lane: lane + 3 if lane + 3 < 32 else lane),
        ("up", 3, lambda lane: lane - 3 if lane >= 3 else lane),
        ("idx", 9, lambda lane: 9),
    ],
)
def test_shuffles(mode, amount, source):
    values, clamp = integers(RNG, np.uint32, 64), 0 if mode == "up" else 31
    got = execute(f"shfl.sync.{mode}.b32 %r0, %r1, {amount}, {clamp}, -1;", threads=64, r1=values)["r0"]
    assert got.tolist() == [values[i // 32 * 32 + source(i % 32)] for i in range(64)]


def test_shuffles_inside_segments():
    """Clamp 0x1C03: segments of four lanes, as in a product's rows."""
    values = integers(RNG, np.uint32)
    got = execute("shfl.sync.bfly.b32 %r0, %r1, 2, 7171, -1;", r1=values)["r0"]
    assert got.tolist() == [values[lane ^ 2] for lane in range(32)]


def test_a_shuffle_of_part_of_a_warp_is_a_fault():
    with pytest.raises(Fault, match="divergent"):
        execute(
            "mov.u32 %r2, %tid.x; setp.lt.u32 %p1, %r2, 3; @%p1 shfl.sync.bfly.b32 %r0, %r1, 1, 31, -1;",
            r1=np.uint32(1),
        )


@pytest.mark.parametrize("op, function", [("max", max), ("min", min), ("add", lambda a: sum(a) % 2**32)])
def test_reductions_over_a_warp(op, function):
    values = integers(RNG, np.uint32, 64)
    got = execute(f"redux.sync.{op}.u32 %r0, %r1, -1;", threads=64, r1=values)["r0"].reshape(2, 32)
    for warp in range(2):
        assert set(got[warp].tolist()) == {function(values[32 * warp : 32 * warp + 32].tolist())}


def test_elect_chooses_one_lane():
    got = execute("elect.sync %r0|%p1, -1;", threads=64)
    assert np.flatnonzero(got["p1"]).tolist() == [0, 32]


def test_parsing():
    parsed = parse(
        kernel("@!%p1 add.s32 %r1, %r2, -3; // a comment\n$L:\nbra $L;", ["first", "second"], threads=96)
    )
    assert parsed.num_threads == 96
    assert [name for name, _ in parsed.parameters] == ["first", "second"]
    add = next(each for block in parsed.blocks for each in block.body if each.op == "add.s32")
    assert (add.guard, add.negated, add.operands) == ("%p1", True, ["%r1", "%r2", "-3"])
    assert parsed.register_bits("%rd3") == 64
    with pytest.raises(ValueError, match="no kernel"):
        parse("// nothing")
