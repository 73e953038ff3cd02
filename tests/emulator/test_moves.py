"""Moves, selections, comparisons and conversions."""

import math
import operator

import numpy as np
import pytest
from emulated import execute, floats, integers

RNG = np.random.default_rng(2)


def test_vectors_pack_and_unpack():
    low, high = integers(RNG, np.uint16), integers(RNG, np.uint16)
    packed = execute("mov.b32 %r0, {%rs1, %rs2};", rs1=low, rs2=high)["r0"]
    assert packed.tolist() == [a | b << 16 for a, b in zip(low.tolist(), high.tolist())]
    parts = execute("mov.b32 {%rs1, %rs2}, %r0;", r0=packed)
    assert parts["rs1"].tolist() == low.tolist()
    assert parts["rs2"].tolist() == high.tolist()


def test_immediates():
    assert execute("mov.b32 %r0, -5;")["r0"].view(np.int32).tolist() == [-5] * 32
    assert execute("mov.f32 %f0, 0f40490FDB;")["f0"].view(np.float32)[0] == np.float32(math.pi)


def test_special_registers():
    out = execute("mov.u32 %r0, %tid.x; mov.u32 %r1, %laneid; mov.u32 %r2, %ntid.x;", threads=64)
    assert out["r0"].tolist() == list(range(64))
    assert out["r1"].tolist() == [*range(32), *range(32)]
    assert set(out["r2"].tolist()) == {64}


@pytest.mark.parametrize("name", ["eq", "ne", "lt", "le", "gt", "ge"])
@pytest.mark.parametrize("unordered", [False, True])
def test_float_comparisons(name, unordered):
    a, b = floats(RNG), floats(RNG)
    b[5:12] = a[5:12]
    b[13] = np.nan
    got = execute(f"setp.{name}{'u' if unordered else ''}.f32 %p0, %r1, %r2;", r1=a, r2=b)["p0"]
    for x, y, actual in zip(a.tolist(), b.tolist(), got.tolist()):
        nan = math.isnan(x) or math.isnan(y)
        assert actual == (unordered if nan else getattr(operator, name)(x, y))


def test_integer_comparisons_and_combination():
    a, b, p = integers(RNG, np.int32), integers(RNG, np.int32), RNG.random(32) < 0.5
    got = execute("setp.lt.and.s32 %p0, %r1, %r2, %p3;", r1=a, r2=b, p3=p)["p0"]
    assert got.tolist() == [x < y and bool(z) for x, y, z in zip(a.tolist(), b.tolist(), p)]
    got = execute("setp.lt.u32 %p0, %r1, %r2;", r1=a, r2=b)["p0"]
    unsigned = zip(a.view(np.uint32).tolist(), b.view(np.uint32).tolist())
    assert got.tolist() == [x < y for x, y in unsigned]


def test_select():
    a, b, p = integers(RNG, np.uint32), integers(RNG, np.uint32), RNG.random(32) < 0.5
    got = execute("selp.b32 %r0, %r1, %r2, %p3;", r1=a, r2=b, p3=p)["r0"]
    assert got.tolist() == [x if z else y for x, y, z in zip(a.tolist(), b.tolist(), p)]


def to_bf16_by_hand(value):
    """Nearest bfloat16, ties to even, by trying both neighbours."""
    if math.isnan(value):
        return None
    bits = int(np.float32(value).view(np.uint32))
    low, rest = bits >> 16, bits & 0xFFFF
    return low + (rest > 0x8000 or (rest == 0x8000 and low % 2 == 1))


def test_bfloat16():
    values = floats(RNG)
    values[10:12] = np.array([0x3F808000, 0x3F818000], np.uint32).view(np.float32)  # ties, down and up
    got = execute("cvt.rn.bf16.f32 %rs0, %r1;", r1=values)["rs0"]
    for value, actual in zip(values.tolist(), got.tolist()):
        expected = to_bf16_by_hand(value)
        assert actual == 0x7FFF if expected is None else actual == expected
    back = execute("cvt.f32.bf16 %r0, %rs1;", rs1=got)["r0"]
    assert back.tolist() == [bits << 16 for bits in got.tolist()]
    both = execute("cvt.rn.bf16x2.f32 %r0, %r1, %r2;", r1=values, r2=values[::-1].copy())["r0"]
    assert both.tolist() == [high << 16 | low for high, low in zip(got.tolist(), got[::-1].tolist())]


def test_tf32_rounds_to_ten_bits():
    values = np.abs(floats(RNG))[8:].repeat(2)[:32]
    got = execute("cvt.rna.tf32.f32 %r0, %r1;", r1=values)["r0"].view(np.float32)
    for value, actual in zip(values.tolist(), got.tolist()):
        mantissa, exponent = math.frexp(value)
        assert actual == math.ldexp(math.floor(mantissa * 2**11 + 0.5), exponent - 11)


def test_half():
    values = floats(RNG)
    got = execute("cvt.rn.f16.f32 %rs0, %r1;", r1=values)["rs0"].view(np.float16)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(got, values.astype(np.float16))
    back = execute("cvt.f32.f16 %r0, %rs1;", rs1=got)["r0"].view(np.float32)
    np.testing.assert_array_equal(back, got.astype(np.float32))


@pytest.mark.parametrize(
    "mode, function", [("rzi", math.trunc), ("rmi", math.floor), ("rpi", math.ceil), ("rni", round)]
)
def test_floats_to_integers_saturate(mode, function):
    values = np.concatenate([RNG.uniform(-5, 5, 26), [0.5, 1.5, 1e20, -1e20, np.inf, np.nan]]).astype(
        np.float32
    )
    got = execute(f"cvt.{mode}.s32.f32 %r0, %r1;", r1=values)["r0"].view(np.int32)
    for value, actual in zip(values.tolist(), got.tolist()):
        if math.isnan(value):
            assert actual == 0
        else:
            whole = function(value) if math.isfinite(value) else (2**40 if value > 0 else -(2**40))
            assert actual == min(max(whole, -(2**31)), 2**31 - 1)


def test_integers_to_floats_and_widths():
    values = integers(RNG, np.int32)
    got = execute("cvt.rn.f32.s32 %r0, %r1;", r1=values)["r0"].view(np.float32)
    np.testing.assert_array_equal(got, values.astype(np.float32))
    wide = execute("cvt.s64.s32 %rd0, %r1;", r1=values)["rd0"].view(np.int64)
    assert wide.tolist() == values.tolist()
    narrow = execute("cvt.u16.u32 %rs0, %r1;", r1=values)["rs0"]
    assert narrow.tolist() == [value % 2**16 for value in values.tolist()]
