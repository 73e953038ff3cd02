"""Arithmetic instructions against Python's integers and fractions, one thread at a time."""

import math
from fractions import Fraction

import numpy as np
import pytest
from emulated import execute, floats, integers

RNG = np.random.default_rng(0)


def as_float(bits):
    return bits.view(np.float32)


def same(actual, expected):
    """Equal, zeros of one sign, NaN where NaN."""
    assert len(actual) == len(expected)
    for got, want in zip(actual.tolist(), expected):
        both_nan = math.isnan(got) and math.isnan(want)
        assert both_nan or (got == want and math.copysign(1, got) == math.copysign(1, want)), (got, want)


def rounded(value):
    """A fraction as the nearest float32, ties to even."""
    if value == 0:
        return 0.0
    exponent = max(math.frexp(float(value))[1] - 24, -149) if abs(value) < Fraction(2) ** 1000 else 1000
    unit = Fraction(2) ** exponent
    units = value / unit
    whole = math.floor(units)
    rest = units - whole
    whole += rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole % 2 == 1)
    result = whole * unit
    return math.copysign(math.inf, result) if abs(result) >= Fraction(2) ** 128 else float(result)


def exactly(function, *columns):
    """float32 results of exact rational arithmetic, where all operands are finite; None elsewhere."""
    out = []
    for row in zip(*(column.tolist() for column in columns)):
        finite = all(math.isfinite(value) for value in row)
        out.append(rounded(function(*map(Fraction, row))) if finite else None)
    return out


@pytest.mark.parametrize(
    "op, function",
    [("add", lambda a, b: a + b), ("sub", lambda a, b: a - b), ("mul", lambda a, b: a * b)],
)
def test_float32_rounds_once(op, function):
    a, b = floats(RNG), floats(RNG)
    got = as_float(execute(f"{op}.rn.f32 %r0, %r1, %r2;", r1=a, r2=b)["r0"]).tolist()
    for actual, expected in zip(got, exactly(function, a, b)):
        assert expected is None or actual == expected


def test_fma_rounds_once():
    """Including products that cancel their addend to the last bit, where rounding twice gives zero."""
    a, b, c = floats(RNG, 64), floats(RNG, 64), floats(RNG, 64)
    c[32:] = -(a[32:] * b[32:])
    got = as_float(execute("fma.rn.f32 %r0, %r1, %r2, %r3;", threads=64, r1=a, r2=b, r3=c)["r0"]).tolist()
    expected = exactly(lambda x, y, z: x * y + z, a, b, c)
    for actual, want in zip(got, expected):
        assert want is None or actual == want
    assert any(want for want in expected[32:]), "some cancellation must leave the product's rounding error"


def test_contraction_shows():
    """What gave NaN in cosine attention: s * f - round(s * f) is huge where s * f is."""
    s, f = np.full(32, -(2.0**100) * 1.2345678, np.float32), np.full(32, 1.1, np.float32)
    fused = as_float(execute("fma.rn.f32 %r0, %r1, %r2, %r3;", r1=s, r2=f, r3=-(s * f))["r0"])
    assert np.abs(fused).max() > 1e20


def test_ftz_flushes_operands_and_results():
    tiny, one = np.full(32, 1e-40, np.float32), np.float32(1.0)
    assert not as_float(execute("mul.ftz.f32 %r0, %r1, %r2;", r1=tiny, r2=one)["r0"]).any()
    assert as_float(execute("mul.f32 %r0, %r1, %r2;", r1=tiny, r2=one)["r0"]).all()


@pytest.mark.parametrize("op, function", [("max", max), ("min", min)])
def test_extremes_and_nan(op, function):
    a, b = floats(RNG), floats(RNG)
    b[4], b[9] = 3.0, np.nan
    ignoring = as_float(execute(f"{op}.f32 %r0, %r1, %r2;", r1=a, r2=b)["r0"])
    spreading = as_float(execute(f"{op}.NaN.f32 %r0, %r1, %r2;", r1=a, r2=b)["r0"])
    for x, y, got, nan in zip(a.tolist(), b.tolist(), ignoring.tolist(), spreading.tolist()):
        if math.isnan(x) or math.isnan(y):
            assert math.isnan(nan)
            assert got == (y if math.isnan(x) else x)
        else:
            assert got == nan == function(x, y)


def test_three_operands():
    a, b, c = (RNG.standard_normal(32).astype(np.float32) for _ in range(3))
    got = as_float(execute("max.f32 %r0, %r1, %r2, %r3;", r1=a, r2=b, r3=c)["r0"])
    assert got.tolist() == [max(row) for row in zip(a.tolist(), b.tolist(), c.tolist())]


@pytest.mark.parametrize(
    "kind, dtype", [("s32", np.int32), ("u32", np.uint32), ("s64", np.int64), ("u64", np.uint64)]
)
@pytest.mark.parametrize("op", ["add", "sub", "mul.lo"])
def test_integers_wrap(op, kind, dtype):
    register, bits = ("r", 32) if "32" in kind else ("rd", 64)
    a, b = integers(RNG, dtype), integers(RNG, dtype)
    got = execute(
        f"{op}.{kind} %{register}0, %{register}1, %{register}2;", **{f"{register}1": a, f"{register}2": b}
    )
    function = {"add": int.__add__, "sub": int.__sub__, "mul.lo": int.__mul__}[op]
    expected = [function(x, y) % 2**bits for x, y in zip(a.tolist(), b.tolist())]
    assert got[f"{register}0"].tolist() == expected


def test_wide_and_high_products():
    a, b = integers(RNG, np.int32), integers(RNG, np.int32)
    wide = execute("mul.wide.s32 %rd0, %r1, %r2;", r1=a, r2=b)["rd0"].view(np.int64)
    assert wide.tolist() == [x * y for x, y in zip(a.tolist(), b.tolist())]
    high = execute("mul.hi.u32 %r0, %r1, %r2;", r1=a, r2=b)["r0"]
    unsigned = zip(a.view(np.uint32).tolist(), b.view(np.uint32).tolist())
    assert high.tolist() == [x * y >> 32 for x, y in unsigned]


def test_mad():
    a, b, c = (integers(RNG, np.int32) for _ in range(3))
    low = execute("mad.lo.s32 %r0, %r1, %r2, %r3;", r1=a, r2=b, r3=c)["r0"].view(np.int32)
    rows = list(zip(a.tolist(), b.tolist(), c.tolist()))
    assert low.tolist() == [(x * y + z + 2**31) % 2**32 - 2**31 for x, y, z in rows]
    wide = execute("mad.wide.s32 %rd0, %r1, %r2, %rd1;", r1=a, r2=b, rd1=c.astype(np.int64))["rd0"].view(
        np.int64
    )
    assert wide.tolist() == [x * y + z for x, y, z in rows]


@pytest.mark.parametrize("kind, dtype", [("s32", np.int32), ("u32", np.uint32)])
def test_division_rounds_towards_zero(kind, dtype):
    a, b = integers(RNG, dtype), integers(RNG, dtype) >> 20
    b[3:6] = [1, 2, 3]
    quotient = execute(f"div.{kind} %r0, %r1, %r2;", r1=a, r2=b)["r0"].view(dtype)
    rest = execute(f"rem.{kind} %r0, %r1, %r2;", r1=a, r2=b)["r0"].view(dtype)
    for x, y, q, r in zip(a.tolist(), b.tolist(), quotient.tolist(), rest.tolist()):
        if y == 0:
            assert q == (2**32 - 1 if dtype is np.uint32 else -1)
        elif abs(x // y) < 2**31 or dtype is np.uint32:
            assert (q, r) == (int(Fraction(x, y)), x - y * int(Fraction(x, y)))


@pytest.mark.parametrize(
    "op, function",
    [
        ("ex2.approx.f32", lambda x: 2.0**x if x < 1000 else math.inf),
        ("lg2.approx.f32", lambda x: math.log2(x) if x > 0 else (-math.inf if x == 0 else math.nan)),
        ("sqrt.rn.f32", lambda x: math.sqrt(x) if x >= 0 else math.nan),
        ("rcp.rn.f32", lambda x: 1 / x if x else math.copysign(math.inf, x)),
        ("rsqrt.approx.f32", lambda x: 1 / math.sqrt(x) if x > 0 else (math.inf if x == 0 else math.nan)),
    ],
)
def test_functions_within_documented_error(op, function):
    """2 units in the last place, which is what the PTX manual allows the approximate ones."""
    values = np.abs(floats(RNG)) if "ex2" not in op else RNG.uniform(-160, 160, 32).astype(np.float32)
    got = as_float(execute(f"{op} %r0, %r1;", r1=values)["r0"])
    for x, actual in zip(values.tolist(), got.tolist()):
        expected = function(x)
        if math.isnan(expected) or math.isinf(expected) or abs(expected) > 3.4e38:
            assert math.isnan(actual) == math.isnan(expected)
        else:
            assert abs(actual - expected) <= max(2 * np.spacing(np.float32(abs(expected))), 1e-45), (
                x,
                actual,
            )


def test_neg_and_abs():
    values = floats(RNG)
    same(as_float(execute("neg.f32 %r0, %r1;", r1=values)["r0"]), [-x for x in values.tolist()])
    same(as_float(execute("abs.f32 %r0, %r1;", r1=values)["r0"]), [abs(x) for x in values.tolist()])


def test_mixed_precision():
    half, single = RNG.standard_normal(32).astype(np.float16), floats(RNG)
    got = as_float(execute("add.f32.f16 %r0, %rs1, %r2;", rs1=half, r2=single)["r0"])
    np.testing.assert_array_equal(got, half.astype(np.float32) + single)
    bf16 = (floats(RNG).view(np.uint32) >> 16).astype(np.uint16)
    got = as_float(execute("sub.f32.bf16 %r0, %rs1, %r2;", rs1=bf16, r2=single)["r0"])
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(got, (bf16.astype(np.uint32) << 16).view(np.float32) - single)
