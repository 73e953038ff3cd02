"""Counts against kernels whose sectors, wavefronts and operations are worked out by hand."""

import numpy as np
import pytest
import torch
from emulated import kernel, run_on
from emulated_gpu.counters import Counters, class_of, wavefronts
from emulated_gpu.counting import counted
from emulated_gpu.program import launch


def count(body, *tensors, grid=1, threads=32, shared_size=8192, unit_warps=0):
    """The counters of a body run on tensors, whose addresses are in %rd30, %rd31, ..."""
    text = kernel(body, [f"p{i}" for i in range(len(tensors))], threads)
    code = counted(text)
    counters = Counters(code.kernel, ["A", "B", "C"][: len(tensors)])
    arguments = [np.uint64(tensor.data_ptr()) for tensor in tensors]
    return launch(code, grid, arguments, list(tensors), shared_size, unit_warps, 0, counters).counters


def words(count):
    return torch.zeros(count, dtype=torch.int32)


def at(scale, offset=0, base="%rd30"):
    """%rd2 = base + scale * thread + offset."""
    return f"""mov.u32 %r1, %tid.x; mul.wide.u32 %rd1, %r1, {scale};
    add.s64 %rd2, {base}, %rd1; add.s64 %rd2, %rd2, {offset};"""


@pytest.mark.parametrize(
    "body, sectors, ideal, requested, touched",
    [
        (at(4) + "ld.global.b32 %r2, [%rd2];", 4, 4, 128, 128),
        (at(8) + "ld.global.b32 %r2, [%rd2];", 8, 4, 128, 128),
        (at(32) + "ld.global.b32 %r2, [%rd2];", 32, 4, 128, 128),
        (at(0) + "ld.global.b32 %r2, [%rd2];", 1, 1, 128, 4),
        (at(4, 16) + "ld.global.b32 %r2, [%rd2];", 5, 4, 128, 128),
        (at(2) + "ld.global.b16 %rs2, [%rd2];", 2, 2, 64, 64),
        (at(16) + "ld.global.v4.b32 {%r2, %r3, %r4, %r5}, [%rd2];", 16, 16, 512, 512),
        (at(4) + "setp.lt.u32 %p1, %r1, 9; @%p1 ld.global.b32 %r2, [%rd2];", 2, 2, 36, 36),
        (at(4) + "st.global.b32 [%rd2], %r1;", 4, 4, 128, 128),
    ],
    ids=["whole", "stride-2", "stride-8", "one-word", "shifted", "halves", "vectors", "guarded", "store"],
)  # fmt: skip
def test_sectors(body, sectors, ideal, requested, touched):
    traffic = count(body, words(512)).traffic["A"]
    assert (traffic.sectors, traffic.ideal) == (sectors, ideal)
    assert (traffic.requested, traffic.touched) == (requested, touched)


def test_reading_twice_touches_once_and_tensors_count_apart():
    body = at(4) + "ld.global.b32 %r2, [%rd2]; ld.global.b32 %r3, [%rd2]; ld.global.b32 %r4, [%rd31];"
    traffic = count(body, words(32), words(32), grid=3).traffic
    assert (traffic["A"].sectors, traffic["A"].touched) == (3 * 2 * 4, 128)
    assert (traffic["B"].sectors, traffic["B"].touched) == (3 * 1, 4)


def shared(scale, op="st.shared.b32 [%r2], %r1;"):
    """Threads access shared memory `scale` bytes apart."""
    return f"mov.u32 %r1, %tid.x; mul.lo.u32 %r2, %r1, {scale}; add.s32 %r2, %r2, global_smem; {op}"


PAIRS = "st.shared.v2.b32 [%r2], {%r1, %r1};"
VECTORS = "st.shared.v4.b32 [%r2], {%r1, %r1, %r1, %r1};"


@pytest.mark.parametrize(
    "body, taken, free",
    [
        (shared(4), 1, 1),
        (shared(8), 2, 1),  # words 0 and 16 lie in one bank
        (shared(32), 8, 1),
        (shared(128), 32, 1),
        (shared(132), 1, 1),  # a row of padding
        (shared(2, "cvt.u16.u32 %rs1, %r1; st.shared.b16 [%r2], %rs1;"), 1, 1),  # two halves of one word
        (shared(8, PAIRS), 2, 2),
        (shared(16, PAIRS), 4, 2),
        (shared(16, VECTORS), 4, 4),
        (shared(32, VECTORS), 8, 4),
        (shared(128, VECTORS), 32, 4),
        (shared(144, VECTORS), 4, 4),
    ],
)
def test_wavefronts_of_stores(body, taken, free):
    (access,) = count(body, words(32)).shared
    assert (access.passes, access.ideal) == (taken, free)


def test_a_word_that_all_threads_read_takes_one_wavefront():
    body = shared(4) + "mov.b32 %r3, global_smem; ld.shared.b32 %r4, [%r3];"
    found = {access.instruction.op: access for access in count(body, words(32)).shared}
    assert (found["ld.shared.b32"].passes, found["ld.shared.b32"].ideal) == (1, 1)


@pytest.mark.parametrize("stride, taken", [(16, 4), (32, 8), (128, 32), (144, 4)])
def test_wavefronts_of_matrices(stride, taken):
    """Rows of 8 x 16 bytes: without padding, all of a matrix lie in the same banks at a stride of 128."""
    body = shared(stride, VECTORS) + "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r3, %r4, %r5, %r6}, [%r2];"
    found = {access.instruction.op.split(".")[0]: access for access in count(body, words(32)).shared}
    assert (found["ldmatrix"].passes, found["ldmatrix"].ideal) == (taken, 4)


def test_inactive_threads_have_no_wavefront():
    addresses = np.arange(32)[None] * 128
    assert wavefronts(addresses, addresses < 3 * 128, 4) == (3, 1)
    assert wavefronts(addresses, addresses < 0, 4) == (0, 0)


COPY = shared(16, "") + at(16)


def test_asynchronous_copies_and_bytes_in_flight():
    """Two groups are under way at the second copy of each warp, one after the wait."""
    copy = "cp.async.cg.shared.global [%r2], [%rd2], 16; cp.async.commit_group;"
    more = "add.s32 %r2, %r2, 2048; "
    body = COPY + copy + more + copy + "cp.async.wait_group 1; " + more + copy
    counters = count(body, words(512), threads=64)
    assert counters.bytes_in_flight == 2 * 2 * 512
    traffic = counters.traffic["A"]
    assert (traffic.sectors, traffic.ideal, traffic.touched) == (3 * 2 * 16, 3 * 2 * 16, 1024)
    assert sum(access.passes for access in counters.shared) == 3 * 2 * 4


def test_copies_that_fill_with_zeros_read_nothing():
    body = COPY + "mov.b32 %r3, 0; cp.async.cg.shared.global [%r2], [%rd2], 16, %r3;"
    counters = count(body, words(512))
    assert counters.traffic == {}
    assert counters.shared[0].passes == 4


def test_tensor_operations():
    registers = "{%f1, %f2, %f3, %f4}, {%r1, %r2, %r3, %r4}, {%r5, %r6}, {%f1, %f2, %f3, %f4}"
    body = f"mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {registers};"
    assert count(body, words(32), threads=64).flops == 2 * (2 * 16 * 8 * 16)


def test_instructions_by_class():
    """A loop of three rounds in two warps, then a guarded instruction that no thread executes."""
    body = """mov.b32 %r1, 0;
    again:
    add.s32 %r1, %r1, 1; mul.f32 %f1, %f1, %f1; setp.lt.s32 %p1, %r1, 3; @%p1 bra again;
    @%p1 ex2.approx.f32 %f1, %f1;"""
    found = count(body, words(32), threads=64).instructions
    one_return = 1
    expected = {
        "move": 1,
        "integer": 3,
        "float": 3,
        "predicate": 3 * 2 + one_return,
        "special": 1,
        "param": 1,
    }
    assert found == {name: 2 * times for name, times in expected.items()}


@pytest.mark.parametrize("unit_warps", [0, 1])
def test_warps_that_part_count_where_they_are(unit_warps):
    """The second warp alone executes one more instruction, whether warps run in lockstep or not."""
    body = """mov.u32 %r1, %tid.x; setp.lt.u32 %p1, %r1, 32; @%p1 bra done; mul.f32 %f1, %f1, %f1;
    done:"""
    assert count(body, words(32), threads=64, unit_warps=unit_warps).instructions["float"] == 1


@pytest.mark.parametrize(
    "op, name",
    [
        ("add.s64", "integer"), ("div.s32", "integer"), ("fma.rn.f32", "float"), ("mul.bf16x2", "float"),
        ("div.full.f32", "special"), ("and.pred", "predicate"), ("cvt.rn.bf16x2.f32", "move"),
        ("ld.param.u64", "param"),
        ("ld.shared.v4.b32", "shared"), ("st.global.b32", "global"), ("cp.async.commit_group", "async copy"),
        ("wgmma.fence.sync.aligned", "tensor"), ("bar.sync", "warp"), ("shfl.sync.bfly.b32", "warp"),
    ],
)  # fmt: skip
def test_classes(op, name):
    assert class_of(op) == name


def test_counting_changes_no_result_and_is_off_by_default():
    body = at(4) + "ld.global.b32 %r2, [%rd2]; add.s32 %r2, %r2, 5; st.global.b32 [%rd2], %r2;"
    plain, other = words(32), words(32)
    assert run_on(body, plain).counters is None
    count(body, other)
    assert torch.equal(plain, other)
    assert (plain == 5).all()
