"""Tensor memory (sm_100): loads, stores and products against the PTX manual's layouts, and every misuse."""

import numpy as np
import pytest
import torch
from emulated import run_on
from emulated_gpu.faults import Fault
from matrix_layouts import WIDTHS, descriptor, draw, fill_shared, halves, swizzled

RNG = np.random.default_rng(5)
SHARED_SIZE = 40960
# The barrier and the address of tensor memory lie behind the operands.
BARRIER, ADDRESS = 1024 + 32768, 1024 + 32768 + 64
# %r40 is tensor memory, %r41 a warp's part of it, %p1 warp 0, %p2 its first thread.
BEGIN = f"""mov.u32 %r1, %tid.x; setp.lt.u32 %p1, %r1, 32; setp.eq.u32 %p2, %r1, 0; mov.b32 %r42, {ADDRESS};
@%p1 tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%r42], 64;
mov.b32 %r43, {BARRIER}; @%p2 mbarrier.init.shared::cta.b64 [%r43], 1;
bar.sync 0; ld.shared.b32 %r40, [%r42];
shr.u32 %r44, %r1, 5; shl.b32 %r44, %r44, 21; add.s32 %r41, %r44, %r40;"""
END = "bar.sync 0; @%p1 tcgen05.dealloc.cta_group::1.sync.aligned.b32 %r40, 64;"
WAIT = """{
waitLoop:
mbarrier.try_wait.parity.shared::cta.b64 %p3, [%r43], 0;
@!%p3 bra.uni waitLoop;
}
"""
COMMIT = "@%p2 tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%r43];"
TYPES = {"f16": 0, "bf16": 1, "tf32": 2}
ACCUMULATORS = ", ".join(f"%f{i}" for i in range(4))


def instruction_descriptor(kind, rows, columns):
    return 1 << 4 | TYPES[kind] << 7 | TYPES[kind] << 10 | columns >> 3 << 17 | rows >> 4 << 24


def multiply(kind, left, rows=64, keep=0):
    """One product of the left operand with 8 columns that lie 8192 bytes into shared memory."""
    opcode = f"tcgen05.mma.cta_group::1.kind::{'tf32' if kind == 'tf32' else 'f16'}"
    return f"""setp.eq.u32 %p4, {keep}, 1; mov.b32 %r45, {instruction_descriptor(kind, rows, 8)};
    @%p2 {opcode} [ %r40 + 0 ], {left}, %rd11, %r45, %p4;"""


def run(body, *tensors, **options):
    return run_on(f"{BEGIN}\n{body}\n{END}", *tensors, threads=128, shared_size=SHARED_SIZE, **options)


def test_stores_and_loads():
    """16x32bx2: the upper half of a warp takes the same 16 lanes, further on; 32x32b: a lane per thread."""
    target = torch.zeros(8, 128, dtype=torch.int32)
    values = "".join(f"add.s32 %r{50 + i}, %r46, {i}; add.s32 %r{60 + i}, %r46, {500 + i};" for i in range(4))
    body = f"""mul.lo.u32 %r46, %r1, 1000; {values} add.s32 %r47, %r41, {16 << 16};
    tcgen05.st.sync.aligned.16x32bx2.x4.b32 [%r41 + 0], 4, {{%r50, %r51, %r52, %r53}};
    tcgen05.st.sync.aligned.16x32bx2.x4.b32 [%r47 + 0], 4, {{%r60, %r61, %r62, %r63}};
    tcgen05.wait::st.sync.aligned;
    tcgen05.ld.sync.aligned.32x32b.x8.b32 {{{", ".join(f"%r{70 + i}" for i in range(8))}}}, [%r41 + 0];
    tcgen05.wait::ld.sync.aligned;
    mul.wide.u32 %rd1, %r1, 4; add.s64 %rd2, %rd30, %rd1;
    {" ".join(f"st.global.b32 [%rd2 + {512 * i}], %r{70 + i};" for i in range(8))}"""
    run(body, target)
    for thread in range(128):
        warp, lane = divmod(thread, 32)
        for column in range(8):
            writer = 32 * warp + lane % 16 + 16 * (column // 4)
            expected = 1000 * writer + column % 4 + (500 if lane >= 16 else 0)
            assert target[column, thread].item() == expected


@pytest.mark.parametrize("unit_warps", [0, 1])
@pytest.mark.parametrize("mode", [1, 2, 3])
@pytest.mark.parametrize("kind", ["f16", "bf16", "tf32"])
@pytest.mark.parametrize("keep", [0, 1])
def test_products_of_shared_memory(mode, kind, keep, unit_warps):
    """64 x 8 x 32 bytes; row r of the accumulator is lane r % 16 of warp r / 16.

    With one warp at a time those that wait may go first, before warp 0 has issued what they wait for.
    """
    width, size = WIDTHS[mode], 4 if kind == "tf32" else 2
    depth = 32 // size
    a, b = draw(RNG, (64, depth), kind), draw(RNG, (8, depth), kind)
    memory = np.zeros(32768 // size, np.uint32 if size == 4 else np.uint16)
    for matrix, start in ((a, 0), (b, 8192)):
        for row in range(len(matrix)):
            for column in range(depth):
                memory[(start + swizzled(row, size * column, width)) // size] = halves(
                    matrix[row, column], kind
                )
    source, target = torch.from_numpy(memory.view(np.int32)), torch.zeros(4, 128)
    left, right = (descriptor(1024 + start, mode, 8 * width) for start in (0, 8192))
    copies = "\n".join(
        f"ld.global.b32 %r5, [%rd2 + {start}]; st.shared.b32 [%r4 + {start}], %r5;"
        for start in range(0, 32768, 512)
    )
    body = f"""{fill_shared(0)} {copies} fence.proxy.async.shared::cta;
    {" ".join(f"mov.f32 %f{i}, 0f40400000;" for i in range(4))}
    tcgen05.st.sync.aligned.16x32bx2.x4.b32 [%r41 + 0], 4, {{{ACCUMULATORS}}}; bar.sync 0;
    mov.b64 %rd10, {left}; mov.b64 %rd11, {right};
    {multiply(kind, "%rd10", keep=keep)} {COMMIT}
    {WAIT}
    tcgen05.ld.sync.aligned.16x32bx2.x4.b32 {{{ACCUMULATORS}}}, [%r41 + 0], 4;
    {" ".join(f"st.global.f32 [%rd3 + {512 * i}], %f{i};" for i in range(4))}"""
    done = run(body, source, target, unit_warps=unit_warps)
    expected = (a.astype(np.float64) @ b.T.astype(np.float64) + 3.0 * keep).astype(np.float32)
    for thread in range(128):
        warp, lane = divmod(thread, 32)
        for i in range(4):
            assert target[i, thread].item() == expected[16 * warp + lane % 16, 4 * (lane // 16) + i]
    assert done.unfenced_reads == 0


def test_left_operand_in_tensor_memory():
    """64 rows of 16 halves, two per column, times 8 rows of ones that count them."""
    target = torch.zeros(4, 128)
    one = 0x3C003C00
    body = f"""mov.b32 %r3, global_smem; shl.b32 %r4, %r1, 2; add.s32 %r4, %r4, %r3; mov.b32 %r5, {one};
    {" ".join(f"st.shared.b32 [%r4 + {start}], %r5;" for start in range(8192, 12288, 512))}
    fence.proxy.async.shared::cta; cvt.rn.f32.u32 %f5, %r1; cvt.rn.f16x2.f32 %r6, %f5, %f5;
    tcgen05.st.sync.aligned.16x32bx2.x4.b32 [%r41 + 16], 4, {{%r6, %r6, %r6, %r6}}; bar.sync 0;
    mov.b64 %rd11, {descriptor(1024 + 8192, 1, 1024)};
    {multiply("f16", "[ %r40 + 16 ]")} {COMMIT}
    {WAIT}
    tcgen05.ld.sync.aligned.16x32bx2.x4.b32 {{{ACCUMULATORS}}}, [%r41 + 0], 4;
    mul.wide.u32 %rd1, %r1, 4; add.s64 %rd3, %rd30, %rd1;
    {" ".join(f"st.global.f32 [%rd3 + {512 * i}], %f{i};" for i in range(4))}"""
    run(body, target)
    for thread in range(128):
        # A row's first eight halves come from one thread, the others from the thread 16 further on.
        low = thread // 32 * 32 + thread % 16
        assert target[:, thread].tolist() == [8.0 * low + 8.0 * (low + 16)] * 4


ZEROS = f"""mov.b32 %r3, global_smem; shl.b32 %r4, %r1, 2; add.s32 %r4, %r4, %r3; mov.b32 %r5, 0;
{" ".join(f"st.shared.b32 [%r4 + {start}], %r5;" for start in range(0, 16384, 512))}
fence.proxy.async.shared::cta; bar.sync 0;
mov.b64 %rd10, {descriptor(1024, 1, 1024)}; mov.b64 %rd11, {descriptor(1024 + 8192, 1, 1024)};"""
LOAD = f"tcgen05.ld.sync.aligned.16x32bx2.x4.b32 {{{ACCUMULATORS}}}, [%r41 + 0], 4;"


@pytest.mark.parametrize(
    "body, message",
    [
        (LOAD, "never written"),
        (LOAD.replace("+ 0", "+ 64"), "outside the 64 columns"),
        (LOAD.replace("%r41", "%r40"), "another warp's lanes"),
        (f"{ZEROS} {multiply('f16', '%rd10')} {COMMIT} {LOAD} {WAIT}", "read while a product"),
        (f"{ZEROS} {multiply('f16', '%rd10')} {COMMIT} st.shared.b32 [%r4], %r5; {WAIT}", "race"),
        (f"{ZEROS} {multiply('f16', '%rd10')} {COMMIT}", "in use"),
        (f"{ZEROS} {multiply('f16', '%rd10', keep=1)} {COMMIT} {WAIT}", "adds to tensor memory"),
        (f"{ZEROS} {multiply('f16', '%rd10').replace('@%p2', '')} {COMMIT} {WAIT}", "more than one thread"),
        (WAIT, "nothing will arrive"),
        (WAIT.replace("[%r43]", "[%r42]"), "not initialized"),
    ],
)
def test_misuse_is_a_fault(body, message):
    with pytest.raises(Fault, match=message):
        run(body, torch.zeros(1), unit_warps=0)


def test_tensor_memory_is_freed():
    with pytest.raises(Fault, match="keeps its tensor memory"):
        run_on(BEGIN, torch.zeros(1), threads=128, shared_size=SHARED_SIZE)
