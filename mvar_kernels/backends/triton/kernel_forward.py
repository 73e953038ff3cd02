"""Forward: every program keeps one tile of queries and walks its chunks of keys (online softmax, base 2).

Cosine attention multiplies rows and columns of the scores by 1/|q| and 1/|k| (B, H, L), because normalizing
the same keys in every tile that reads them would cost more. A negative factor flips the sign of the mask and
of 1/|k|. Flipping q instead would be slower: products would then reload q through registers
(docs/measurements.md).
"""

import triton
import triton.language as tl

from mvar_kernels.backends.triton.primitives import (
    LOG2E,
    chunks_of_queries,
    dot,
    factor_parts,
    key_head,
    least_score,
    load_mask,
    load_rows,
    scores,
    store_rows,
)


@triton.jit(do_not_specialize=["T", "H", "LQ", "LK", "scale"])
def forward_kernel(
    Q, K, V, O, LSE, RQ, RK, FACTOR,
    FIXED, START, LOOPED, FIXED_MASK, LOOPED_MASK, FIXED_MASKS, LOOPED_MASKS,
    T, H, LQ, LK, scale,
    stride_qb, stride_ql, stride_qh, stride_qd,
    stride_kb, stride_kl, stride_kh, stride_kd,
    stride_vb, stride_vl, stride_vh, stride_vd,
    D: tl.constexpr, BD: tl.constexpr, W: tl.constexpr, BW: tl.constexpr, GROUP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, E: tl.constexpr,
    COSINE: tl.constexpr, SAME_KV_STRIDE: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr, CAST: tl.constexpr,
):  # fmt: skip
    """Write O (B, LQ, H, W) and LSE (B, H, LQ) of one tile of queries, for one batch element and head."""
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
    p_o = O + i_b * LQ * H * W + i_h * W
    o_row = i_bh.to(tl.int64) * LQ

    b_tokens = tl.load(FIXED + i_tile * BM + o_m)
    m_tokens = b_tokens < LQ
    # [BM, BD]
    b_q = load_rows(p_q, b_tokens, stride_ql, stride_qd, m_tokens, D, BD, WIDE, True)
    if COSINE:
        _, _, magnitude, flip = factor_parts(FACTOR, i_h, scale)
        b_factor = tl.load(RQ + o_row + b_tokens, mask=m_tokens, other=1.0) * (magnitude * LOG2E)
        p_rk = RK + i_bh.to(tl.int64) * LK
        least = least_score(magnitude, COSINE)
    else:
        b_factor = tl.full([BM], scale * LOG2E, dtype=tl.float32)
        flip = 0
        least = least_score(scale, COSINE)

    i_first, i_last = chunks_of_queries(START, i_tile, not CAST)
    b_fixed_mask = load_mask(FIXED_MASKS, tl.load(FIXED_MASK + i_tile) + flip, BM, E)
    # Above every hidden score and below every visible one, so that a row whose first chunk is hidden adds
    # exact zeros.
    b_max = tl.full([BM], least, dtype=tl.float32)
    # With partial sums per row, adding up across threads waits until after the loop. D > 64 lacks registers.
    PARTS: tl.constexpr = 8 if BD <= 64 and BW <= 64 else 1
    b_sum = tl.zeros([BM, PARTS], dtype=tl.float32)
    b_acc = tl.zeros([BM, BW], dtype=tl.float32)
    for i_chunk in range(i_first, i_last):
        b_keys = tl.load(LOOPED + i_chunk * BN + o_n)
        # [BN, BD]
        b_k = load_rows(p_k, b_keys, stride_kl, stride_kd, b_keys, D, BD, WIDE, False)
        b_looped_mask = load_mask(LOOPED_MASKS, tl.load(LOOPED_MASK + i_chunk), BN, E)
        # [BM, BN]
        b_s = scores(b_q, b_k, b_fixed_mask, b_looped_mask, BM, BN, PRECISION, CAST)
        if COSINE:
            b_s = b_s * tl.load(p_rk + b_keys)[None, :]
        b_new_max = tl.maximum(b_max, tl.max(b_s, 1) * b_factor)
        b_p = tl.exp2(b_s * b_factor[:, None] - b_new_max[:, None])
        b_decay = tl.exp2(b_max - b_new_max)
        b_sum = b_sum * b_decay[:, None] + tl.sum(tl.reshape(b_p, [BM, BN // PARTS, PARTS]), 1)
        # With one stride the compiler computes the offsets of key and value once.
        b_v = load_rows(
            p_v, b_keys, stride_kl if SAME_KV_STRIDE else stride_vl, stride_vd, b_keys, W, BW, WIDE, False
        )
        b_acc = dot(b_p.to(b_v.dtype), b_v, b_acc * b_decay[:, None], PRECISION, CAST)
        b_max = b_new_max
    b_total = tl.sum(b_sum, 1)
    # One division per row, not one per element.
    store_rows(p_o, b_tokens, H * W, b_acc * (1.0 / b_total)[:, None], m_tokens, W, BW, WIDE)
    tl.store(LSE + o_row + b_tokens, (b_max + tl.log2(b_total)) / LOG2E, mask=m_tokens)
