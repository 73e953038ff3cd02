"""Loads and products that the three kernels share.

Vocabulary: i_ program ids, o_ offsets, p_ pointers, b_ tiles, m_ masks. Dims B batch, L tokens, H heads, D head dimension; BM fixed tokens, BN
looped tokens, BD padded head dimension, E mask features.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
NORM_EPS = tl.constexpr(1e-12)
# Cosine attention multiplies dS by an inverse norm before it is rounded to the inputs' type; in float16 that must not overflow.
HALF_LIMIT = tl.constexpr(8192.0)
SMALLEST_FACTOR = tl.constexpr(2.0**-40)
# Where a running maximum of dot products starts: above every hidden score, -2^100 times a scale of at least 1e-12.
LEAST_DOT = tl.constexpr(-(2.0**60))


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
    """[n, BD] rows of the tokens; columns past D, and with MASKED the rows where m_rows is false, are zeros."""
    o_d = tl.arange(0, BD)
    # Offsets inside one batch element fit 32 bits unless the tensor is enormous.
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
def load_mask(p_masks, i_mask, ROWS: tl.constexpr, E: tl.constexpr):
    """[ROWS, E] mask factor number i_mask."""
    o_rows, o_e = tl.arange(0, ROWS), tl.arange(0, E)
    return tl.load(p_masks + (i_mask * ROWS + o_rows)[:, None] * E + o_e[None, :])


@triton.jit
def dot(b_left, b_right, b_acc, PRECISION: tl.constexpr, CAST: tl.constexpr):
    """b_acc + b_left @ b_right in float32. CAST: the interpreter multiplies in the operands' type, so they are widened there."""
    if CAST:
        return tl.dot(b_left.to(tl.float32), b_right.to(tl.float32), b_acc, input_precision="ieee")
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
    """[ROWS, COLS] products, hugely negative where the mask hides them."""
    b_hidden = dot(
        b_fixed_mask, tl.trans(b_looped_mask), tl.zeros([ROWS, COLS], dtype=tl.float32), PRECISION, CAST
    )
    return dot(b_fixed, tl.trans(b_looped), b_hidden, PRECISION, CAST)


@triton.jit
def factor_parts(p_factor, i_h, scale):
    """Cosine attention's factor of a head; its sign, which RK carries; its magnitude, never zero; and which of a pair of masks suits the sign.

    What hides a score is multiplied by the factor too. So a negative factor takes the mask with the other sign, and zero counts as 2^-40, which
    leaves every softmax as it would be and hides all the same.
    """
    factor = tl.load(p_factor + i_h).to(tl.float32) * scale
    sign = tl.where(factor < 0, -1.0, 1.0)
    return factor, sign, tl.maximum(tl.abs(factor), SMALLEST_FACTOR), (factor < 0).to(tl.int32)


@triton.jit
def least_score(magnitude, COSINE: tl.constexpr):
    """Where a running maximum starts: below every visible score in base 2, far above every hidden one.

    Were a hidden score to set the maximum, p would be exp2 of its unrounded product minus its rounded one, because GPUs
    contract `a * b - c` into one operation. That difference is up to 1e22 either way, so p would be 0 or inf, and the
    decay of the next chunk would make it NaN. The maximum may not start at -inf either: inf - inf is NaN.

    Cosine attention: cosines times the factor lie above minus twice the factor. Hidden scores are -2^100 / (|q||k|)
    times the factor; they lie below that and count for nothing while |q||k| < 2^52, which all of float16 keeps.
    Dot products: right for logits between -2^58 and 2^58, which float16 cannot leave with a scale below 2e5. A start
    computed from the scale spilled a register in float32 at D 64 on sm_86 and sm_89.
    """
    if COSINE:
        return -2.0 * LOG2E * magnitude
    else:
        return LEAST_DOT


@triton.jit
def narrowed_inverse(b_inverse, dtype: tl.constexpr):
    """An inverse norm that float16 products survive; exact for norms down to 1.2e-4."""
    if dtype == tl.float16:
        return tl.minimum(tl.maximum(b_inverse, -HALF_LIMIT), HALF_LIMIT)
    else:
        return b_inverse


@triton.jit
def unit_gradient(b_grad, b_rows, b_inverse, factor):
    """Gradient of x from that of x / max(|x|, eps) (b_grad times factor), and the rows' product of the unit vector with b_grad."""
    b_unit = b_rows.to(tl.float32) * b_inverse[:, None]
    b_along = tl.sum(b_unit * b_grad, 1)
    # Where the norm was clamped x / eps is linear in x, so nothing is projected out. A little less, as a GPU's division may round.
    b_projected = tl.where(b_inverse < 0.999 / NORM_EPS, b_along, 0.0)
    return (b_grad - b_unit * b_projected[:, None]) * (b_inverse * factor)[:, None], b_along


@triton.jit(do_not_specialize=["rows", "H", "L", "scale"])
def inverse_norms(
    X, OUT, FACTOR, scale, rows, H, L, stride_b, stride_l, stride_h, stride_d,
    SIGNED: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """OUT (B, H, L) = 1 / max(|x|, eps) of x (B, L, H, D); with SIGNED negative where the head's factor is, as `factor_parts` sees it."""
    o_row = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    m_row = o_row < rows
    i_bh, i_l = o_row // L, o_row % L
    o_d = tl.arange(0, BD).to(tl.int64)
    p_rows = (
        X
        + ((i_bh // H) * stride_b + (i_bh % H) * stride_h + i_l * stride_l)[:, None]
        + o_d[None, :] * stride_d
    )
    b_x = tl.load(p_rows, mask=m_row[:, None] & (o_d < D)[None, :], other=0.0).to(tl.float32)
    b_inverse = 1.0 / tl.maximum(tl.sqrt(tl.sum(b_x * b_x, 1)), NORM_EPS)
    if SIGNED:
        b_factor = tl.load(FACTOR + i_bh % H, mask=m_row, other=1.0).to(tl.float32) * scale
        b_inverse = tl.where(b_factor < 0, -b_inverse, b_inverse)
    tl.store(OUT + o_row, b_inverse, mask=m_row)
