"""Tensor-core instructions against products computed element by element from the PTX manual's layouts."""

import numpy as np
import pytest
import torch
from emulated import execute, run_on
from emulated_gpu.faults import Fault
from matrix_layouts import WIDTHS, descriptor, draw, fill_shared, halves, swizzled

RNG = np.random.default_rng(4)


def packed(matrix, places, kind):
    """A register per thread: its elements at `places` of (row, column), low half first."""
    bits = 0
    for index, (row, column) in enumerate(places):
        bits |= halves(matrix[row, column], kind) << (16 * index)
    return bits


@pytest.mark.parametrize("kind", ["f16", "bf16", "tf32"])
def test_mma(kind):
    """Who holds what: A rows g and g + 8, columns by groups of lanes; B columns g; C rows g and g + 8."""
    depth = 8 if kind == "tf32" else 16
    a, b, c = (
        draw(RNG, (16, depth), kind),
        draw(RNG, (depth, 8), kind),
        RNG.standard_normal((16, 8)).astype(np.float32),
    )
    registers = {f"r{i}": np.zeros(32, np.uint32) for i in range(6)}
    addends = {f"f{i}": np.zeros(32, np.float32) for i in range(4)}
    for lane in range(32):
        g, t = lane // 4, lane % 4
        for i in range(4):
            row, half = g + 8 * (i % 2), i // 2
            columns = [t + 4 * half] if kind == "tf32" else [2 * t + 8 * half, 2 * t + 8 * half + 1]
            registers[f"r{i}"][lane] = packed(a, [(row, column) for column in columns], kind)
            addends[f"f{i}"][lane] = c[g + 8 * (i // 2), 2 * t + i % 2]
        for i in range(2):
            rows = [t + 4 * i] if kind == "tf32" else [2 * t + 8 * i, 2 * t + 8 * i + 1]
            registers[f"r{4 + i}"][lane] = packed(b, [(row, g) for row in rows], kind)
    op = f"mma.sync.aligned.m16n8k{depth}.row.col.f32.{kind}.{kind}.f32"
    body = f"{op} {{%f10, %f11, %f12, %f13}}, {{%r0, %r1, %r2, %r3}}, {{%r4, %r5}}, {{%f0, %f1, %f2, %f3}};"
    got = execute(body, **registers, **addends)
    expected = (a.astype(np.float64) @ b.astype(np.float64) + c).astype(np.float32)
    for lane in range(32):
        for i in range(4):
            value = got[f"f{10 + i}"][lane : lane + 1].view(np.float32)[0]
            assert value == expected[lane // 4 + 8 * (i // 2), 2 * (lane % 4) + i % 2]


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(transposed):
    """Four 8 x 8 matrices of halves, row by row; a lane gets two neighbours of a row, or of a column."""
    matrices = torch.from_numpy(RNG.integers(0, 2**15, (4, 8, 8)).astype(np.int16))
    target = torch.zeros(4, 32, dtype=torch.int32)
    trans = ".trans" if transposed else ""
    body = f"""{fill_shared(512)}
    shl.b32 %r6, %r1, 4; add.s32 %r6, %r6, %r3;
    ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{%r10, %r11, %r12, %r13}}, [%r6];
    st.global.b32 [%rd3], %r10; st.global.b32 [%rd3 + 128], %r11;
    st.global.b32 [%rd3 + 256], %r12; st.global.b32 [%rd3 + 384], %r13;"""
    run_on(body, matrices, target)
    expected = matrices.transpose(1, 2) if transposed else matrices
    for i in range(4):
        for lane in range(32):
            pair = expected[i, lane // 4, 2 * (lane % 4) : 2 * (lane % 4) + 2].tolist()
            assert target[i, lane].item() == pair[0] | pair[1] << 16


def test_stmatrix_is_the_inverse_of_ldmatrix():
    source, target = (
        torch.from_numpy(RNG.integers(0, 2**31, 128).astype(np.int32)),
        torch.zeros(128, dtype=torch.int32),
    )
    body = f"""{fill_shared(512)}
    shl.b32 %r6, %r1, 4; add.s32 %r6, %r6, %r3;
    ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%r10, %r11, %r12, %r13}}, [%r6]; bar.sync 0;
    stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r6], {{%r10, %r11, %r12, %r13}}; bar.sync 0;
    ld.shared.v4.b32 {{%r14, %r15, %r16, %r17}}, [%r6];
    shl.b32 %r7, %r1, 4; cvt.u64.u32 %rd4, %r7; add.s64 %rd5, %rd31, %rd4;
    st.global.v4.b32 [%rd5], {{%r14, %r15, %r16, %r17}};"""
    run_on(body, source, target)
    assert torch.equal(source, target)


@pytest.mark.parametrize("mode", [1, 2, 3])
@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("keep", [0, 1])
def test_wgmma(mode, kind, keep):
    """64 x 8 x 16 from shared memory, operands laid out element by element by the swizzling formula."""
    width, base = WIDTHS[mode], 1024
    a, b = draw(RNG, (64, 16), kind), draw(RNG, (8, 16), kind)
    memory = np.zeros(16384, np.uint16)
    for matrix, start in ((a, 0), (b, 8192)):
        for row in range(matrix.shape[0]):
            for column in range(16):
                memory[(start + swizzled(row, 2 * column, width)) // 2] = halves(matrix[row, column], kind)
    source, target = torch.from_numpy(memory.view(np.int16)), torch.zeros(4, 128)
    registers = ", ".join(f"%f{i}" for i in range(4))
    # The emulator's shared memory begins at 1024, a multiple of what the swizzling repeats at.
    left, right = (descriptor(base + start, mode, 8 * width) for start in (0, 8192))
    stores = "\n".join(f"st.global.f32 [%rd4 + {512 * i}], %f{i};" for i in range(4))
    fill = fill_shared(0) + "\n".join(
        f"ld.global.b32 %r5, [%rd2 + {start}]; st.shared.b32 [%r4 + {start}], %r5;"
        for start in range(0, 32768, 512)
    )
    initial = "\n".join(f"mov.f32 %f{i}, 0f40400000;" for i in range(4))  # 3.0
    body = f"""{fill} bar.sync 0; fence.proxy.async.shared::cta; bar.sync 0; {initial}
    mov.b64 %rd10, {left}; mov.b64 %rd11, {right}; setp.eq.u32 %p1, {keep}, 1;
    wgmma.fence.sync.aligned;
    wgmma.mma_async.sync.aligned.m64n8k16.f32.{kind}.{kind} {{{registers}}}, %rd10, %rd11, %p1, 1, 1, 0, 0;
    wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;
    mul.wide.u32 %rd5, %r1, 4; add.s64 %rd4, %rd31, %rd5; {stores}"""
    done = run_on(body, source, target, threads=128, shared_size=32768)
    expected = (a.astype(np.float64) @ b.T.astype(np.float64) + 3.0 * keep).astype(np.float32)
    for thread in range(128):
        warp, g, t = thread // 32, thread % 32 // 4, thread % 4
        for i in range(4):
            assert target[i, thread].item() == expected[16 * warp + g + 8 * (i // 2), 2 * t + i % 2]
    assert done.unfenced_reads == 0


def wgmma_body(after_issue):
    left, right = (descriptor(start, 1, 1024) for start in (1024, 1024 + 8192))
    return f"""mov.u32 %r1, %tid.x; shl.b32 %r2, %r1, 2; mov.b32 %r3, global_smem;
    add.s32 %r4, %r2, %r3; mov.b32 %r5, 0;
    {" ".join(f"st.shared.b32 [%r4 + {start}], %r5;" for start in range(0, 16384, 512))}
    bar.sync 0; mov.b64 %rd10, {left}; mov.b64 %rd11, {right}; setp.eq.u32 %p1, 0, 1;
    mov.f32 %f0, 0f00000000; mov.f32 %f1, %f0; mov.f32 %f2, %f0; mov.f32 %f3, %f0;
    wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {{%f0, %f1, %f2, %f3}}, %rd10, %rd11, %p1, 1, 1, 0, 0;
    wgmma.commit_group.sync.aligned;
    {after_issue}"""


@pytest.mark.parametrize(
    "after_issue, message",
    [
        ("add.f32 %f5, %f0, %f1; wgmma.wait_group.sync.aligned 0;", "before the wait"),
        ("st.shared.b32 [%r4], %r5; wgmma.wait_group.sync.aligned 0;", "race"),
        ("", "products under way"),
    ],
)
def test_what_a_product_under_way_forbids(after_issue, message):
    with pytest.raises(Fault, match=message):
        run_on(wgmma_body(after_issue), torch.zeros(1), threads=128, shared_size=16384)


def test_reads_without_a_fence_are_counted():
    done = run_on(
        wgmma_body("wgmma.wait_group.sync.aligned 0;"), torch.zeros(1), threads=128, shared_size=16384
    )
    assert done.unfenced_reads > 0
