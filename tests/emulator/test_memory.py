"""Loads and stores of global and shared memory, and every misuse that must be a fault."""

import numpy as np
import pytest
import torch
from emulated import run_on
from emulated_gpu.faults import Fault, NotEmulated

ADDRESS = "mov.u32 %r1, %tid.x; mul.wide.u32 %rd1, %r1, 4; add.s64 %rd2, %rd30, %rd1;"


def test_global_round_trip_and_vectors():
    source = torch.arange(128, dtype=torch.int32)
    target = torch.zeros(128, dtype=torch.int32)
    body = """
    mov.u32 %r1, %tid.x; mul.wide.u32 %rd1, %r1, 16; add.s64 %rd2, %rd30, %rd1; add.s64 %rd3, %rd31, %rd1;
    ld.global.v4.b32 {%r2, %r3, %r4, %r5}, [%rd2 + 0];
    st.global.v4.b32 [%rd3 + 0], {%r5, %r4, %r3, %r2};
    """
    run_on(body, source, target)
    assert torch.equal(target, source.reshape(32, 4).flip(1).flatten())


def test_guarded_loads_keep_the_others_values():
    source = torch.arange(32, dtype=torch.int32) + 100
    target = torch.zeros(32, dtype=torch.int32)
    body = f"""
    {ADDRESS} add.s64 %rd3, %rd31, %rd1; mov.b32 %r2, 7;
    setp.lt.u32 %p1, %r1, 10;
    @%p1 ld.global.b32 %r2, [%rd2];
    st.global.b32 [%rd3], %r2;
    """
    run_on(body, source, target)
    assert target.tolist() == [i + 100 if i < 10 else 7 for i in range(32)]


@pytest.mark.parametrize(
    "shift, message", [(-4, "outside all tensors"), (4, "outside all tensors"), (2, "misaligned")]
)
def test_out_of_bounds_and_misaligned(shift, message):
    """One element before the first, one past the end (of the last thread), half an element."""
    memory = torch.zeros(32, dtype=torch.int32)
    with pytest.raises(Fault, match=message):
        run_on(f"{ADDRESS} ld.global.b32 %r2, [%rd2 + {shift}];", memory)


def test_memory_between_elements_is_no_mans():
    """A strided view: what lies between its elements belongs to somebody else."""
    view = torch.zeros(64, dtype=torch.int32)[::2]
    with pytest.raises(Fault, match="between the elements"):
        run_on(f"{ADDRESS} ld.global.b32 %r2, [%rd2];", view)


def test_two_programs_may_not_write_the_same_element():
    with pytest.raises(Fault, match="two programs write"):
        run_on(f"{ADDRESS} st.global.b32 [%rd2], %r1;", torch.zeros(32, dtype=torch.int32), grid=2)


def test_a_program_may_not_read_what_another_wrote():
    body = f"""{ADDRESS} mov.u32 %r2, %ctaid.x; setp.eq.u32 %p1, %r2, 0;
    @%p1 st.global.b32 [%rd2], %r1;
    @!%p1 ld.global.b32 %r3, [%rd2];"""
    # The fault shows in the orders of programs in which the writer goes first.
    messages = set()
    for seed in range(20):
        try:
            run_on(body, torch.zeros(32, dtype=torch.int32), grid=2, seed=seed)
        except Fault as fault:
            messages.add(str(fault))
    assert len(messages) == 1
    assert "another one wrote" in messages.pop()


SHARED = "mov.u32 %r1, %tid.x; shl.b32 %r2, %r1, 2; mov.b32 %r3, global_smem; add.s32 %r2, %r2, %r3;"


def test_shared_round_trip_across_a_barrier():
    target = torch.zeros(64, dtype=torch.int32)
    body = f"""{SHARED} st.shared.b32 [%r2], %r1; bar.sync 0;
    xor.b32 %r4, %r1, 32; shl.b32 %r4, %r4, 2; add.s32 %r4, %r4, %r3; ld.shared.b32 %r5, [%r4];
    mul.wide.u32 %rd1, %r1, 4; add.s64 %rd2, %rd30, %rd1; st.global.b32 [%rd2], %r5;"""
    run_on(body, target, threads=64)
    assert target.tolist() == [i ^ 32 for i in range(64)]


def test_a_missing_barrier_is_a_race():
    body = f"""{SHARED} st.shared.b32 [%r2], %r1;
    xor.b32 %r4, %r1, 32; shl.b32 %r4, %r4, 2; add.s32 %r4, %r4, %r3; ld.shared.b32 %r5, [%r4];"""
    messages = set()
    for seed in range(4):
        with pytest.raises(Fault) as fault:
            run_on(body, torch.zeros(1), threads=64, seed=seed)
        messages.add("never written" if "never written" in str(fault.value) else "race")
    assert messages <= {"never written", "race"}


def test_write_after_read_without_a_barrier_is_a_race():
    body = f"""{SHARED} st.shared.b32 [%r2], %r1; bar.sync 0;
    xor.b32 %r4, %r1, 32; shl.b32 %r4, %r4, 2; add.s32 %r4, %r4, %r3;
    ld.shared.b32 %r5, [%r2]; st.shared.b32 [%r4], %r5;"""
    with pytest.raises(Fault, match="race"):
        run_on(body, torch.zeros(1), threads=64)


def test_unwritten_shared_memory_may_not_be_read():
    with pytest.raises(Fault, match="never written"):
        run_on(f"{SHARED} ld.shared.b32 %r5, [%r2];", torch.zeros(1))


def test_shared_memory_ends():
    with pytest.raises(Fault, match="outside the kernel's 64 bytes"):
        run_on(f"{SHARED} st.shared.b32 [%r2], %r1;", torch.zeros(1), shared_size=64)


COPY = f"{SHARED} mul.wide.u32 %rd1, %r1, 4; add.s64 %rd2, %rd30, %rd1; add.s64 %rd3, %rd31, %rd1;"


def test_asynchronous_copies():
    """Half of the threads ask for no bytes and get zeros."""
    source, target = torch.arange(32, dtype=torch.int32) + 1, torch.full((32,), -1, dtype=torch.int32)
    body = f"""{COPY} setp.lt.u32 %p1, %r1, 16; selp.b32 %r6, 4, 0, %p1;
    cp.async.ca.shared.global [%r2], [%rd2], 4, %r6; cp.async.commit_group; cp.async.wait_group 0; bar.sync 0;
    ld.shared.b32 %r5, [%r2]; st.global.b32 [%rd3], %r5;"""
    run_on(body, source, target)
    assert target.tolist() == [i + 1 if i < 16 else 0 for i in range(32)]


@pytest.mark.parametrize("wait", ["", "cp.async.wait_group 1;"])
def test_a_copy_is_not_there_before_its_wait(wait):
    body = f"""{COPY} cp.async.ca.shared.global [%r2], [%rd2], 4; cp.async.commit_group; {wait} bar.sync 0;
    ld.shared.b32 %r5, [%r2]; st.global.b32 [%rd3], %r5;"""
    with pytest.raises(Fault, match="asynchronous copy"):
        run_on(body, torch.zeros(32, dtype=torch.int32), torch.zeros(32, dtype=torch.int32))


def test_registers_that_were_never_written_are_counted_and_look_bad():
    target = torch.zeros(32)
    done = run_on(f"{ADDRESS} st.global.b32 [%rd2], %r9;", target)
    assert done.undefined_reads > 0
    assert target.isnan().all()


def test_what_it_does_not_know_stops_it_by_name():
    with pytest.raises(NotEmulated, match=r"tcgen05\.cp"):
        run_on("tcgen05.cp.cta_group::1.128x256b [%r1], %rd1;", torch.zeros(1))


def test_counts():
    """Instructions are counted per warp: three of the body, one return, in two warps of two programs."""
    done = run_on(
        "mov.b32 %r1, 1; mov.b32 %r2, 2; add.s32 %r3, %r1, %r2;", torch.zeros(1), threads=64, grid=2
    )
    parameter_load = 1
    assert done.instructions == (3 + 1 + parameter_load) * 2 * 2
    assert np.isclose(done.programs, 2)
