"""Backward: one kernel for dq, which keeps queries like forward, and one for dk and dv, which keeps keys.

Every program owns what it writes: no atomics, nothing summed across programs, the same bits on every run. dq
runs first and leaves delta = rowsum(dO O) - dLSE for dk and dv, and lse in base 2, which every chunk of those
would multiply again.
"""

import triton
import triton.language as tl

from mvar_kernels.backends.triton.primitives import (
    LOG2E,
    chunks_of_queries,
    dot,
    factor_parts,
    key_head,
    load_mask,
    load_rows,
    narrowed_inverse,
    scores,
    store_rows,
    unit_gradient,
)


@triton.jit(do_not_specialize=["T", "H", "LQ", "LK", "scale"])
def backward_dq(
    Q, K, V, O, DO, DQ, LSE, DLSE, DELTA, LSE2, RQ, RK, FACTOR, DFACTOR,
    FIXED, START, LOOPED, FIXED_MASK, LOOPED_MASK, FIXED_MASKS, LOOPED_MASKS,
    T, H, LQ, LK, scale,
    stride_qb, stride_ql, stride_qh, stride_qd,
    stride_kb, stride_kl, stride_kh, stride_kd,
    stride_vb, stride_vl, stride_vh, stride_vd,
    stride_gb, stride_gl, stride_gh, stride_gd,
    D: tl.constexpr, BD: tl.constexpr, W: tl.constexpr, BW: tl.constexpr, GROUP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, E: tl.constexpr,
    COSINE: tl.constexpr, HAS_DLSE: tl.constexpr, SAME_KV_STRIDE: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr, CAST: tl.constexpr,
):  # fmt: skip
    """Write DQ, DELTA, LSE2 and, with cosine attention, DFACTOR of one tile of queries.

    DFACTOR (B, H, LQ) is each query's part of the gradient of logit_scale, before the sum and the factor
    `scale`.
    """
    i_tile = tl.program_id(0) % T
    i_bh = tl.program_id(0) // T
    i_b, i_h = (i_bh // H).to(tl.int64), (i_bh % H).to(tl.int64)
    i_hk = key_head(i_h, GROUP)
    o_m, o_n = tl.arange(0, BM), tl.arange(0, BN)
    p_q, p_k, p_v = (
        Q + i_b * stride_qb + i_h * stride_qh,
        K + i_b * stride_kb + i_hk * stride_kh,
        V + i_b * stride_vb + i_hk * stride_vh,
    )
    o_dq, o_out = i_b * LQ * H * D + i_h * D, i_b * LQ * H * W + i_h * W
    o_row = i_bh.to(tl.int64) * LQ

    b_tokens = tl.load(FIXED + i_tile * BM + o_m)
    m_tokens = b_tokens < LQ
    # [BM, BD]
    b_q = load_rows(p_q, b_tokens, stride_ql, stride_qd, m_tokens, D, BD, WIDE, True)
    b_do = load_rows(
        DO + i_b * stride_gb + i_h * stride_gh, b_tokens, stride_gl, stride_gd, m_tokens, W, BW, WIDE, True
    )
    b_o = load_rows(O + o_out, b_tokens, H * W, 1, m_tokens, W, BW, WIDE, True)
    b_delta = tl.sum(b_do.to(tl.float32) * b_o.to(tl.float32), 1)
    if HAS_DLSE:
        b_delta = b_delta - tl.load(DLSE + o_row + b_tokens, mask=m_tokens, other=0.0)
    tl.store(DELTA + o_row + b_tokens, b_delta, mask=m_tokens)
    b_lse = tl.load(LSE + o_row + b_tokens, mask=m_tokens, other=0.0) * LOG2E
    tl.store(LSE2 + o_row + b_tokens, b_lse, mask=m_tokens)
    if COSINE:
        factor, sign, magnitude, flip = factor_parts(FACTOR, i_h, scale)
        b_inverse = tl.load(RQ + o_row + b_tokens, mask=m_tokens, other=1.0)
        b_factor = b_inverse * (magnitude * LOG2E)
        p_rk = RK + i_bh.to(tl.int64) * LK
    else:
        b_factor = tl.full([BM], scale * LOG2E, dtype=tl.float32)
        flip = 0

    # With the assumption, D 256 spills on sm_86.
    i_first, i_last = chunks_of_queries(START, i_tile, not CAST and BD <= 128 and BW <= 128)
    b_fixed_mask = load_mask(FIXED_MASKS, tl.load(FIXED_MASK + i_tile) + flip, BM, E)
    b_dq = tl.zeros([BM, BD], dtype=tl.float32)
    for i_chunk in range(i_first, i_last):
        b_keys = tl.load(LOOPED + i_chunk * BN + o_n)
        # [BN, BD]
        b_k = load_rows(p_k, b_keys, stride_kl, stride_kd, b_keys, D, BD, WIDE, False)
        # With one stride the compiler computes the offsets of key and value once.
        b_v = load_rows(
            p_v, b_keys, stride_kl if SAME_KV_STRIDE else stride_vl, stride_vd, b_keys, W, BW, WIDE, False
        )
        b_looped_mask = load_mask(LOOPED_MASKS, tl.load(LOOPED_MASK + i_chunk), BN, E)
        # [BM, BN]
        b_s = scores(b_q, b_k, b_fixed_mask, b_looped_mask, BM, BN, PRECISION, CAST)
        if COSINE:
            b_rk = tl.load(p_rk + b_keys)
            b_s = b_s * b_rk[None, :]
        b_p = tl.exp2(b_s * b_factor[:, None] - b_lse[:, None])
        b_dp = dot(b_do, tl.trans(b_v), tl.zeros([BM, BN], dtype=tl.float32), PRECISION, CAST)
        b_ds = b_p * (b_dp - b_delta[:, None])
        if COSINE:
            b_ds = b_ds * narrowed_inverse(b_rk, K.dtype.element_ty)[None, :]
        b_dq = dot(b_ds.to(b_k.dtype), b_k, b_dq, PRECISION, CAST)
    if COSINE:
        # b_dq already carries the sign of the factor, as RK does.
        b_dq, b_along = unit_gradient(b_dq, b_q, b_inverse, sign * factor)
        tl.store(DFACTOR + o_row + b_tokens, sign * b_along, mask=m_tokens)
    else:
        b_dq = b_dq * scale
    store_rows(DQ + o_dq, b_tokens, H * D, b_dq, m_tokens, D, BD, WIDE)


@triton.jit(do_not_specialize=["T", "H", "LQ", "LK", "scale"])
def backward_dkdv(
    Q, K, V, DO, DK, DV, LSE2, DELTA, RQ, RK, FACTOR,
    FIXED, START, LOOPED, FIXED_MASK, LOOPED_MASK, FIXED_MASKS, LOOPED_MASKS,
    T, H, LQ, LK, scale,
    stride_qb, stride_ql, stride_qh, stride_qd,
    stride_kb, stride_kl, stride_kh, stride_kd,
    stride_vb, stride_vl, stride_vh, stride_vd,
    stride_gb, stride_gl, stride_gh, stride_gd,
    D: tl.constexpr, BD: tl.constexpr, W: tl.constexpr, BW: tl.constexpr, GROUP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, E: tl.constexpr,
    COSINE: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr, CAST: tl.constexpr,
):  # fmt: skip
    """Write DK and DV of one tile of keys for one head of queries; scores are transposed, with keys as rows.

    DK is (B, LK, H, D), DV (B, LK, H, W): heads of queries that share a head of keys are summed afterwards.
    Keys that no query sees have no chunks and get zeros.
    """
    i_tile = tl.program_id(0) % T
    i_bh = tl.program_id(0) // T
    i_b, i_h = (i_bh // H).to(tl.int64), (i_bh % H).to(tl.int64)
    i_hk = key_head(i_h, GROUP)
    o_m, o_n = tl.arange(0, BM), tl.arange(0, BN)
    p_q, p_g = Q + i_b * stride_qb + i_h * stride_qh, DO + i_b * stride_gb + i_h * stride_gh
    p_k, p_v = K + i_b * stride_kb + i_hk * stride_kh, V + i_b * stride_vb + i_hk * stride_vh
    o_dk, o_dv = i_b * LK * H * D + i_h * D, i_b * LK * H * W + i_h * W
    p_lse, p_delta = LSE2 + i_bh.to(tl.int64) * LQ, DELTA + i_bh.to(tl.int64) * LQ

    b_tokens = tl.load(FIXED + i_tile * BM + o_m)
    m_tokens = b_tokens < LK
    # [BM, BD]
    b_k = load_rows(p_k, b_tokens, stride_kl, stride_kd, m_tokens, D, BD, WIDE, True)
    b_v = load_rows(p_v, b_tokens, stride_vl, stride_vd, m_tokens, W, BW, WIDE, True)
    if COSINE:
        factor, sign, magnitude, flip = factor_parts(FACTOR, i_h, scale)
        b_inverse = tl.load(RK + i_bh.to(tl.int64) * LK + b_tokens, mask=m_tokens, other=1.0)
        b_factor = b_inverse * (magnitude * LOG2E)
        p_rq = RQ + i_bh.to(tl.int64) * LQ
    else:
        b_factor = tl.full([BM], scale * LOG2E, dtype=tl.float32)
        flip = 0

    i_first, i_last = tl.load(START + i_tile), tl.load(START + i_tile + 1)
    b_dk = tl.zeros([BM, BD], dtype=tl.float32)
    b_dv = tl.zeros([BM, BW], dtype=tl.float32)
    if i_first < i_last:
        b_fixed_mask = load_mask(FIXED_MASKS, tl.load(FIXED_MASK + i_tile) + flip, BM, E)
        for i_chunk in range(i_first, i_last):
            b_queries = tl.load(LOOPED + i_chunk * BN + o_n)
            # [BN, BD]
            b_q = load_rows(p_q, b_queries, stride_ql, stride_qd, b_queries, D, BD, WIDE, False)
            b_do = load_rows(p_g, b_queries, stride_gl, stride_gd, b_queries, W, BW, WIDE, False)
            b_looped_mask = load_mask(LOOPED_MASKS, tl.load(LOOPED_MASK + i_chunk), BN, E)
            # [BM, BN]
            b_s = scores(b_k, b_q, b_fixed_mask, b_looped_mask, BM, BN, PRECISION, CAST)
            if COSINE:
                b_rq = tl.load(p_rq + b_queries)
                b_s = b_s * b_rq[None, :]
            b_p = tl.exp2(b_s * b_factor[:, None] - tl.load(p_lse + b_queries)[None, :])
            b_dv = dot(b_p.to(b_do.dtype), b_do, b_dv, PRECISION, CAST)
            b_dp = dot(b_v, tl.trans(b_do), tl.zeros([BM, BN], dtype=tl.float32), PRECISION, CAST)
            b_ds = b_p * (b_dp - tl.load(p_delta + b_queries)[None, :])
            if COSINE:
                b_ds = b_ds * narrowed_inverse(b_rq, Q.dtype.element_ty)[None, :]
            b_dk = dot(b_ds.to(b_q.dtype), b_q, b_dk, PRECISION, CAST)
    if COSINE:
        b_dk, _ = unit_gradient(b_dk, b_k, sign * b_inverse, factor)
    else:
        b_dk = b_dk * scale
    store_rows(DK + o_dk, b_tokens, H * D, b_dk, m_tokens, D, BD, WIDE)
    store_rows(DV + o_dv, b_tokens, H * W, b_dv, m_tokens, W, BW, WIDE)
