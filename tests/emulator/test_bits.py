"""Logic, shifts, fields and permutations against Python's integers."""

import numpy as np
import pytest
from emulated import execute, integers
from emulated_gpu.faults import Fault

RNG = np.random.default_rng(1)
A, B = integers(RNG, np.uint32), integers(RNG, np.uint32)


@pytest.mark.parametrize("op, function", [("and", int.__and__), ("or", int.__or__), ("xor", int.__xor__)])
def test_logic(op, function):
    got = execute(f"{op}.b32 %r0, %r1, %r2;", r1=A, r2=B)["r0"]
    assert got.tolist() == [function(a, b) for a, b in zip(A.tolist(), B.tolist())]
    p, q = RNG.random(32) < 0.5, RNG.random(32) < 0.5
    got = execute(f"{op}.pred %p0, %p1, %p2;", p1=p, p2=q)["p0"]
    assert got.tolist() == [bool(function(int(a), int(b))) for a, b in zip(p, q)]


def test_not():
    assert execute("not.b32 %r0, %r1;", r1=A)["r0"].tolist() == [a ^ 0xFFFFFFFF for a in A.tolist()]


def test_popc():
    assert execute("popc.b32 %r0, %r1;", r1=A)["r0"].tolist() == [a.bit_count() for a in A.tolist()]


def test_shifts_past_the_width_give_zero_or_the_sign():
    by = np.arange(32, dtype=np.uint32) * 3
    left = execute("shl.b32 %r0, %r1, %r2;", r1=A, r2=by)["r0"]
    right = execute("shr.u32 %r0, %r1, %r2;", r1=A, r2=by)["r0"]
    signed = execute("shr.s32 %r0, %r1, %r2;", r1=A, r2=by)["r0"].view(np.int32)
    for a, s, n, x, y, z in zip(
        A.tolist(), A.view(np.int32).tolist(), by.tolist(), left.tolist(), right.tolist(), signed.tolist()
    ):
        assert (x, y, z) == ((a << n) & 0xFFFFFFFF, a >> n, s >> min(n, 31))


@pytest.mark.parametrize("direction", ["l", "r"])
@pytest.mark.parametrize("mode", ["wrap", "clamp"])
def test_funnel_shift(direction, mode):
    by = np.arange(32, dtype=np.uint32) * 2
    got = execute(f"shf.{direction}.{mode}.b32 %r0, %r1, %r2, %r3;", r1=A, r2=B, r3=by)["r0"]
    for low, high, n, actual in zip(A.tolist(), B.tolist(), by.tolist(), got.tolist()):
        n = n % 32 if mode == "wrap" else min(n, 32)
        both = high << 32 | low
        assert actual == ((both << n) >> 32 if direction == "l" else both >> n) & 0xFFFFFFFF


@pytest.mark.parametrize("kind", ["u32", "s32"])
def test_bit_fields(kind):
    position, length = RNG.integers(0, 16, 32).astype(np.uint32), RNG.integers(0, 17, 32).astype(np.uint32)
    got = execute(f"bfe.{kind} %r0, %r1, %r2, %r3;", r1=A, r2=position, r3=length)["r0"]
    for a, p, n, actual in zip(A.tolist(), position.tolist(), length.tolist(), got.tolist()):
        field = (a >> p) & (2**n - 1)
        negative = kind == "s32" and n and field >> (n - 1)
        assert actual == (field - 2**n if negative else field) % 2**32


def test_a_field_past_the_register_is_a_fault():
    with pytest.raises(Fault, match="bit field"):
        execute("bfe.u32 %r0, %r1, 20, 13;", r1=A)


def test_permute_bytes():
    selector = RNG.integers(0, 2**16, 32).astype(np.uint32)
    got = execute("prmt.b32 %r0, %r1, %r2, %r3;", r1=A, r2=B, r3=selector)["r0"]
    for a, b, s, actual in zip(A.tolist(), B.tolist(), selector.tolist(), got.tolist()):
        source, expected = a.to_bytes(4, "little") + b.to_bytes(4, "little"), b""
        for place in range(4):
            nibble = s >> 4 * place & 15
            byte = source[nibble & 7]
            expected += bytes([(255 if byte & 128 else 0) if nibble & 8 else byte])
        assert actual == int.from_bytes(expected, "little")
