"""The emulated AMD GPU: LLVM IR against formulas written down lane by lane, and every misuse."""

import math

import numpy as np
import pytest
import torch
from emulated_amd.parse import Code
from emulated_amd.values import LOCAL_BASE, from_bf16, to_bf16
from emulated_amd.workgroup import Workgroup
from emulated_gpu.faults import Fault, NotEmulated
from emulated_gpu.global_memory import Global

RNG = np.random.default_rng(6)
LANES = np.arange(64, dtype=np.int32)


def execute(body, tensor=None, size=64, local=256, **registers):
    """Run a body with registers set beforehand; returns all registers. %p points to the tensor."""
    memory = torch.zeros(1) if tensor is None else tensor
    code = Code(f"define amdgpu_kernel void @k() {{\n{body}\n  ret void\n}}")
    group = Workgroup(code, 3, [], size, Global([memory]), local)
    group.registers.update(registers, p=np.array([memory.data_ptr()]))
    with np.errstate(all="ignore"):
        group.run()
    return group.registers


def integers(count=64):
    values = RNG.integers(-(2**31), 2**31, count).astype(np.int32)
    values[:4] = [0, 1, -1, -(2**31)]
    return values


@pytest.mark.parametrize(
    "opcode, function",
    [
        ("add", lambda a, b: a + b),
        ("sub", lambda a, b: a - b),
        ("mul", lambda a, b: a * b),
        ("xor", lambda a, b: a ^ b),
        ("shl", lambda a, b: a << (b & 31)),
        ("lshr", lambda a, b: (a % 2**32) >> (b & 31)),
        ("ashr", lambda a, b: a >> (b & 31)),
        ("sdiv", lambda a, b: int(math.copysign(abs(a) // abs(b), a * b)) if a else 0),
        ("srem", lambda a, b: a - b * int(math.copysign(abs(a) // abs(b), a * b)) if a else 0),
        ("udiv", lambda a, b: (a % 2**32) // (b % 2**32)),
    ],
)
def test_integers(opcode, function):
    a, b = integers(), integers()
    b = b & 31 if opcode in ("shl", "lshr", "ashr") else np.where(b == 0, 7, b)
    b = np.where(b == -1, 3, b).astype(np.int32)
    got = execute(f"  %r = {opcode} i32 %a, %b", a=a, b=b)["r"]
    assert got.tolist() == [(function(x, y) + 2**31) % 2**32 - 2**31 for x, y in zip(a.tolist(), b.tolist())]


def test_comparisons_and_selection():
    a, b = integers(), integers()
    got = execute(
        "  %s = icmp slt i32 %a, %b\n  %u = icmp ult i32 %a, %b\n  %r = select i1 %u, i32 %a, i32 5", a=a, b=b
    )
    for x, y, signed, unsigned, chosen in zip(
        *(each.tolist() for each in (a, b, got["s"], got["u"], got["r"]))
    ):
        below = x % 2**32 < y % 2**32
        assert (signed, unsigned, chosen) == (x < y, below, x if below else 5)


def test_relations_of_nan():
    a = np.array([1.0, np.nan] * 32, np.float32)
    got = execute(
        "  %o = fcmp olt float %a, 2.0\n  %u = fcmp ult float %a, 0.0\n  %n = fcmp uno float %a, 0.0", a=a
    )
    assert got["o"].tolist() == [True, False] * 32
    assert got["u"].tolist() == got["n"].tolist() == [False, True] * 32


def test_conversions():
    values = RNG.standard_normal(64).astype(np.float32)
    values[0] = np.nan
    got = execute(
        """  %b = fptrunc float %v to bfloat
  %w = fpext bfloat %b to float
  %i = bitcast float %v to i32
  %t = trunc i32 %i to i13
  %z = zext i13 %t to i32
  %m = call i13 @llvm.bitreverse.i13(i13 %t)
  %s = sext i32 %i to i64""",
        v=values,
    )
    expected = torch.from_numpy(values).bfloat16().float().numpy()
    np.testing.assert_array_equal(got["w"], expected)
    bits = values.view(np.int32).tolist()
    assert got["z"].tolist() == [each % 2**13 for each in bits]
    assert got["m"].tolist() == [int(f"{each % 2**13:013b}"[::-1], 2) for each in bits]
    assert got["s"].tolist() == bits


def test_added_products_are_contracted():
    """As code generation does: s * f - round(s * f) is what rounding took from the product."""
    s, f = np.full(64, np.float32(-(2.0**100) * 1.2345678)), np.full(64, np.float32(1.1))
    got = execute("  %m = fmul float %s, %f\n  %r = fsub float %m, %c", s=s, f=f, c=s * f)["r"]
    assert (got == np.float32(float(s[0]) * float(f[0]) - float(s[0] * f[0]))).all() and (got != 0).all()


def test_vectors():
    v, w = RNG.standard_normal((64, 4)).astype(np.float32), RNG.standard_normal((64, 4)).astype(np.float32)
    got = execute(
        """  %a = shufflevector <4 x float> %v, <4 x float> %w, <3 x i32> <i32 6, i32 0, i32 poison>
  %e = extractelement <4 x float> %v, i64 2
  %i = insertelement <2 x float> <float 1.0, float poison>, float %e, i64 1
  %h = bitcast <2 x float> %i to <4 x i16>
  %s = shufflevector <2 x float> %i, <2 x float> poison, <2 x i32> splat (i32 1)""",
        v=v,
        w=w,
    )
    np.testing.assert_array_equal(got["a"][:, :2], np.stack([w[:, 2], v[:, 0]], 1))
    np.testing.assert_array_equal(got["i"], np.stack([np.ones(64, np.float32), v[:, 2]], 1))
    np.testing.assert_array_equal(got["h"].view(np.float32), got["i"])
    np.testing.assert_array_equal(got["s"], np.stack([v[:, 2]] * 2, 1))


def test_lanes_part_and_meet_again():
    """Every lane goes round as often as its number says; phis take what each lane came with."""
    body = """  br label %loop
loop:
  %i = phi i32 [ 0, %0 ], [ %n, %loop ]
  %sum = phi i32 [ 100, %0 ], [ %more, %loop ]
  %n = add i32 %i, 1
  %more = add i32 %sum, %i
  %again = icmp slt i32 %i, %lane
  br i1 %again, label %loop, label %done
done:
  %r = add i32 %more, 1000"""
    got = execute(body, lane=LANES)["r"]
    assert got.tolist() == [1100 + sum(range(lane + 1)) for lane in range(64)]


@pytest.mark.parametrize(
    "control, source",
    [
        (0b00_01_10_11, lambda lane: lane - lane % 4 + 3 - lane % 4),
        (0x101, lambda lane: lane + 1 if lane % 16 < 15 else None),
        (0x118, lambda lane: lane - 8 if lane % 16 >= 8 else None),
        (0x122, lambda lane: lane - lane % 16 + (lane - 2) % 16),
        (0x140, lambda lane: lane - lane % 16 + 15 - lane % 16),
        (0x141, lambda lane: lane - lane % 8 + 7 - lane % 8),
        (0x142, lambda lane: lane // 16 * 16 - 1 if lane >= 16 else None),
        (0x143, lambda lane: 31 if lane >= 32 else None),
    ],
)
@pytest.mark.parametrize("rows, banks", [(15, 15), (10, 5)])
def test_dpp(control, source, rows, banks):
    name = "llvm.amdgcn.update.dpp.i32"
    body = f"  %r = call i32 @{name}(i32 %old, i32 %new, i32 {control}, i32 {rows}, i32 {banks}, i1 false)"
    got = execute(body, old=LANES + 1000, new=LANES + 0)["r"]
    for lane, value in enumerate(got.tolist()):
        written = rows >> lane // 16 & 1 and banks >> lane % 16 // 4 & 1
        assert value == (source(lane) if written and source(lane) is not None else lane + 1000)


def test_lanes_exchange():
    addresses = RNG.permutation(64).astype(np.int32) * 4
    pattern = 0b10000_00100_01111  # xor 16, or 4, and 15
    got = execute(
        f"""  %b = call i32 @llvm.amdgcn.ds.bpermute(i32 %to, i32 %v)
  %s = call i32 @llvm.amdgcn.ds.swizzle(i32 %v, i32 {pattern})
  %l = call i32 @llvm.amdgcn.readlane.i32(i32 %v, i32 63)
  %f = call i32 @llvm.amdgcn.readfirstlane.i32(i32 %v)
  %w = call i32 @llvm.amdgcn.workgroup.id.x()""",
        to=addresses,
        v=LANES * 10,
    )
    assert got["b"].tolist() == [address // 4 * 10 for address in addresses.tolist()]
    assert got["s"].tolist() == [(lane // 32 * 32 + ((lane % 32 & 15 | 4) ^ 16)) * 10 for lane in range(64)]
    assert set(got["l"].tolist()) == {630} and set(got["f"].tolist()) == {0} and got["w"].tolist() == [3]


@pytest.mark.parametrize(
    "shape, elements",
    [
        ("32x32x8bf16.1k", 4),
        ("16x16x16bf16.1k", 4),
        ("32x32x8f16", 4),
        ("16x16x16f16", 4),
        ("32x32x2f32", 1),
        ("16x16x4f32", 1),
        ("32x32x4.xf32", 2),
        ("16x16x8.xf32", 2),
    ],
)
def test_matrix_products(shape, elements):
    """Element by element: lane l holds row or column l % n, and elements of part l / n of K."""
    side, parts = int(shape[:2]), 64 // int(shape[:2])
    depth, registers = parts * elements, side // parts
    a, b = (RNG.standard_normal((side, depth)).astype(np.float32) for _ in range(2))
    held = {"bf16": "<4 x i16>", "f16": "<4 x half>", "xf32": "<2 x float>"}
    kind = next((held[name] for name in held if name in shape), "float")
    if "bf16" in shape:
        a, b = (from_bf16(to_bf16(each)) for each in (a, b))
    elif "xf32" in shape:
        a, b = ((each.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32) for each in (a, b))
    elif "f16" in shape:
        a, b = (each.astype(np.float16).astype(np.float32) for each in (a, b))

    def packed(matrix):
        lanes = np.stack([matrix[lane % side, lane // side * elements :][:elements] for lane in range(64)])
        if "bf16" in shape:
            return to_bf16(lanes).view(np.int16)
        return lanes.astype(np.float16) if kind == "<4 x half>" else lanes if elements > 1 else lanes[:, 0]

    c = RNG.standard_normal((64, registers)).astype(np.float32)
    vector = f"<{registers} x float>"
    given = f"{kind} %a, {kind} %b, {vector} %c, i32 0, i32 0, i32 0"
    body = f"  %r = call {vector} @llvm.amdgcn.mfma.f32.{shape}({given})"
    got = execute(body, a=packed(a), b=packed(b), c=c)["r"]
    product = a.astype(np.float64) @ b.T.astype(np.float64)
    for lane in range(64):
        for register in range(registers):
            row = register // 4 * 4 * parts + lane // side * 4 + register % 4
            assert got[lane, register] == np.float32(product[row, lane % side] + c[lane, register])


LOCAL = """  %o = mul i32 %lane, 4
  %l = getelementptr i8, ptr addrspace(3) @global_smem, i32 %o"""


def test_local_memory():
    body = f"""{LOCAL}
  store <1 x i32> %v, ptr addrspace(3) %l, align 4
  tail call void @llvm.amdgcn.s.barrier()
  %r = load <1 x i32>, ptr addrspace(3) %l, align 4"""
    got = execute(body, lane=LANES, v=LANES[:, None] * 3)
    assert got["r"][:, 0].tolist() == (LANES * 3).tolist() and got["l"][0] == LOCAL_BASE


def buffer(call, operands, result=""):
    """A call of an intrinsic on the buffer %d, at offset %o."""
    where = "ptr addrspace(8) %d, i32 %o, i32 0, i32 0"
    return f"  {result}tail call {call}.i32({operands}{where})\n"


def test_buffers_end():
    """Lanes whose offset is past the buffer load zeros and store nothing."""
    memory = torch.arange(64, dtype=torch.int32)
    offsets = np.where(LANES < 40, LANES * 4, np.int32(-(2**31)))
    make = "@llvm.amdgcn.make.buffer.rsrc.p8.p1(ptr addrspace(1) %p, i16 0, i64 2147483646, i32 1)"
    body = f"  %d = tail call ptr addrspace(8) {make}\n"
    body += buffer("i32 @llvm.amdgcn.raw.ptr.buffer.load", "", "%r = ") + "  %n = add i32 %r, 100\n"
    body += buffer("void @llvm.amdgcn.raw.ptr.buffer.store", "i32 %n, ")
    got = execute(body, memory, o=offsets)["r"]
    assert got.tolist() == [lane if lane < 40 else 0 for lane in range(64)]
    assert memory.tolist() == [lane + 100 if lane < 40 else lane for lane in range(64)]


PAST = "getelementptr i8, ptr addrspace(3) %l, i32 4\n  store i32 0, ptr addrspace(3) %m, align 4"
OUTSIDE = "getelementptr i32, ptr addrspace(1) %p, i32 %lane\n  %r = load i32, ptr addrspace(1) %q, align 4"
PARTED = """  %c = icmp slt i32 %lane, 5
  br i1 %c, label %a, label %b
a:
  call void @llvm.amdgcn.s.barrier()
  br label %b
b:"""


@pytest.mark.parametrize(
    "body, message",
    [
        (f"{LOCAL}\n  %r = load <1 x i32>, ptr addrspace(3) %l, align 4", "never written"),
        (f"{LOCAL}\n  %m = {PAST}", "outside the kernel's 256 bytes"),
        (f"  %q = {OUTSIDE}", "outside all tensors"),
        (PARTED, "divergent"),
    ],
)
def test_misuse_is_a_fault(body, message):
    with pytest.raises(Fault, match=message):
        execute(body, lane=LANES)


def test_what_it_does_not_know_stops_it_by_name():
    with pytest.raises(NotEmulated, match=r"global\.atomic\.fadd"):
        execute("  %r = call float @llvm.amdgcn.global.atomic.fadd.f32(ptr addrspace(1) %p, float 1.0)")
