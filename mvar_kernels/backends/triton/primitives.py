"""Loads and products that the three kernels share.

Vocabulary of all kernels:
    prefixes: i_ program ids and indices, o_ offsets, p_ pointers, b_ tiles, m_ masks of loads and stores.
    sizes: B batch, L tokens, H heads of queries, GROUP of which share a head of keys and values, D head
        dimension of queries and keys, W that of values, BM fixed tokens, BN looped tokens, BD and BW padded
        head dimensions, E mask features.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
NORM_EPS = tl.constexpr(1e-12)
# Cosine attention multiplies dS by an inverse norm before rounding it to the inputs' type, which must not
# overflow in float16.
HALF_LIMIT = tl.constexpr(8192.0)
SMALLEST_FACTOR = tl.constexpr(2.0**-40)
SIGN_AND_EXPONENT = tl.constexpr(-(1 << 23))
HALF_TF32_BIT = tl.constexpr(2.0**-11)
# Where a running maximum of dot products starts: above every hidden score, -2^100 times a scale of at least
# 1e-12.
LEAST_DOT = tl.constexpr(-(2.0**60))

# Older versions of triton lack it; all it does is to shorten the code.
HAS_ASSUME = tl.constexpr(hasattr(tl, "assume"))


@triton.jit
def load_rows(
    p_base,
    b_tokens,
    stride_l,
    stride_d,
    m_rows,
    D: tl.constexpr,
    BD: tl.constexpr,
    WIDE: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Load [n, BD] rows; columns past D, and with MASKED the rows where m_rows is false, are zeros."""
    o_d = tl.arange(0, BD)
    # 32-bit offsets save instructions and reach all of one batch element, unless the tensor is enormous.
    b_rows = b_tokens.to(tl.int64) if WIDE else b_tokens
    b_cols = o_d.to(tl.int64) if WIDE else o_d
    p_rows = p_base + b_rows[:, None] * stride_l + b_cols[None, :] * stride_d
    if MASKED:
        if D == BD:
            return tl.load(p_rows, mask=m_rows[:, None], other=0.0)
        else:
            return tl.load(p_rows, mask=m_rows[:, None] & (o_d < D)[None, :], other=0.0)
    else:
        if D == BD:
            return tl.load(p_rows)
        else:
            return tl.load(p_rows, mask=(o_d < D)[None, :], other=0.0)


@triton.jit
def store_rows(
    p_base, b_tokens, stride_l, b_values, m_rows, D: tl.constexpr, BD: tl.constexpr, WIDE: tl.constexpr
):
    """Write [n, BD] rows whose last dimension is contiguous, in the pointer's type."""
    o_d = tl.arange(0, BD)
    b_rows = b_tokens.to(tl.int64) if WIDE else b_tokens
    p_rows = p_base + b_rows[:, None] * stride_l + o_d[None, :]
    m_all = m_rows[:, None] if D == BD else m_rows[:, None] & (o_d < D)[None, :]
    tl.store(p_rows, b_values.to(p_base.dtype.element_ty), mask=m_all)


@triton.jit
def key_head(i_h, GROUP: tl.constexpr):
    """Return the head of keys and values that a head of queries attends to; GROUP of those share one."""
    if GROUP == 1:
        return i_h
    else:
        return i_h // GROUP


@triton.jit
def chunks_of_queries(p_start, i_tile, ASSUME: tl.constexpr):
    """Return the first chunk of a tile of queries and the one after its last; every query sees a key."""
    i_first, i_last = tl.load(p_start + i_tile), tl.load(p_start + i_tile + 1)
    # A loop that runs at least once needs its initial values once (32 instructions less).
    if HAS_ASSUME and ASSUME:
        tl.assume(i_first < i_last)
    return i_first, i_last


@triton.jit
def load_mask(p_masks, i_mask, ROWS: tl.constexpr, E: tl.constexpr):
    """Load mask factor number i_mask, [ROWS, E]."""
    o_rows, o_e = tl.arange(0, ROWS), tl.arange(0, E)
    return tl.load(p_masks + (i_mask * ROWS + o_rows)[:, None] * E + o_e[None, :])


@triton.jit
def rounded_to_tf32(b_x):
    """Round float32 for tensor cores, which read 10 bits of mantissa and cut off the rest.

    Cutting makes every product smaller: on the emulated GPU lse was wrong by up to ten times what rounding
    leaves, 2e-3 instead of 2e-4. Half of the last bit that they read is added first, as a float, because
    NaN would become zero if its bits were added to. Neither PTX nor Triton rounds by itself.
    """
    b_power = (b_x.to(tl.int32, bitcast=True) & SIGN_AND_EXPONENT).to(tl.float32, bitcast=True)
    return b_x + b_power * HALF_TF32_BIT


@triton.jit
def dot(b_left, b_right, b_acc, PRECISION: tl.constexpr, CAST: tl.constexpr):
    """Return b_acc + b_left @ b_right in float32."""
    # The interpreter multiplies in the operands' type, so CAST widens them there.
    if CAST:
        return tl.dot(b_left.to(tl.float32), b_right.to(tl.float32), b_acc, input_precision="ieee")
    elif PRECISION == "tf32" and b_left.dtype == tl.float32:
        return tl.dot(rounded_to_tf32(b_left), rounded_to_tf32(b_right), b_acc, input_precision="tf32")
    else:
        return tl.dot(b_left, b_right, b_acc, input_precision=PRECISION)


@triton.jit
def scores(
    b_fixed,
    b_looped,
    b_fixed_mask,
    b_looped_mask,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    PRECISION: tl.constexpr,
    CAST: tl.constexpr,
):
    """Return the [ROWS, COLS] products, hugely negative where the mask hides them."""
    # The mask is a product of bfloat16 factors, so the tensor cores add it to the scores.
    b_hidden = dot(
        b_fixed_mask, tl.trans(b_looped_mask), tl.zeros([ROWS, COLS], dtype=tl.float32), PRECISION, CAST
    )
    return dot(b_fixed, tl.trans(b_looped), b_hidden, PRECISION, CAST)


@triton.jit
def factor_parts(p_factor, i_h, scale):
    """Return a head's factor of cosine attention, sign and magnitude, and 1 if it needs the negated mask.

    The mask penalty is multiplied by the factor together with the score. A negative factor therefore uses the
    negated mask, and a zero factor is replaced by 2^-40, which is too small to change the softmax but still
    masks.
    """
    factor = tl.load(p_factor + i_h).to(tl.float32) * scale
    sign = tl.where(factor < 0, -1.0, 1.0)
    return factor, sign, tl.maximum(tl.abs(factor), SMALLEST_FACTOR), (factor < 0).to(tl.int32)


@triton.jit
def least_score(magnitude, COSINE: tl.constexpr):
    """Where a running maximum starts: below every visible score in base 2, far above every hidden one.

    Were a hidden score to set the maximum, p would be exp2 of its unrounded product minus its rounded one,
    because GPUs contract `a * b - c` into one operation. That difference is up to 1e22 either way, so p would
    be 0 or inf, and the decay of the next chunk would make it NaN. The maximum may not start at -inf either:
    inf - inf is NaN.

    Cosine attention: cosines times the factor lie above minus twice the factor. Hidden scores are -2^100 /
    (|q||k|) times the factor; they lie below that and count for nothing while |q||k| < 2^52, which all of
    float16 keeps. A visible maximum is a rounded product too: exp2 of its rounding error is at most 2^8,
    which float16 holds, for factors below 1e8, and exceeds float16 above 1.8e8.

    Dot products: right for logits between -2^58 and 2^58, which float16 cannot leave with a scale below 2e5.
    A start computed from the scale spilled a register in float32 at D 64 on sm_86 and sm_89.
    """
    if COSINE:
        return -2.0 * LOG2E * magnitude
    else:
        return LEAST_DOT


@triton.jit
def narrowed_inverse(b_inverse, dtype: tl.constexpr):
    """Clamp an inverse norm to what float16 products survive; exact for norms down to 1.2e-4."""
    if dtype == tl.float16:
        return tl.minimum(tl.maximum(b_inverse, -HALF_LIMIT), HALF_LIMIT)
    else:
        return b_inverse


@triton.jit
def unit_gradient(b_grad, b_rows, b_inverse, factor):
    """Turn factor * b_grad, the gradient of x / max(|x|, eps), into that of x; return unit x . b_grad too."""
    b_unit = b_rows.to(tl.float32) * b_inverse[:, None]
    b_along = tl.sum(b_unit * b_grad, 1)
    # Where the norm was clamped, x / eps is linear in x, so nothing is projected out. 0.999, as a GPU's
    # division may round.
    b_projected = tl.where(b_inverse < 0.999 / NORM_EPS, b_along, 0.0)
    return (b_grad - b_unit * b_projected[:, None]) * (b_inverse * factor)[:, None], b_along


@triton.jit(do_not_specialize=["rows", "H", "L", "scale"])
def inverse_norms(
    X, OUT, FACTOR, scale, rows, H, L, stride_b, stride_l, stride_h, stride_d,
    SIGNED: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Write OUT (B, H, L) = 1 / max(|x|, eps) of X (B, L, H / GROUP, D), with the factor's sign if SIGNED."""
    o_row = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    m_row = o_row < rows
    i_bh, i_l = o_row // L, o_row % L
    o_d = tl.arange(0, BD).to(tl.int64)
    p_rows = (
        X
        + ((i_bh // H) * stride_b + key_head(i_bh % H, GROUP) * stride_h + i_l * stride_l)[:, None]
        + o_d[None, :] * stride_d
    )
    b_x = tl.load(p_rows, mask=m_row[:, None] & (o_d < D)[None, :], other=0.0).to(tl.float32)
    b_inverse = 1.0 / tl.maximum(tl.sqrt(tl.sum(b_x * b_x, 1)), NORM_EPS)
    if SIGNED:
        b_factor = tl.load(FACTOR + i_bh % H, mask=m_row, other=1.0).to(tl.float32) * scale
        b_inverse = tl.where(b_factor < 0, -b_inverse, b_inverse)
    tl.store(OUT + o_row, b_inverse, mask=m_row)
