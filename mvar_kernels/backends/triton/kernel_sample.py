"""Codes from logits: guidance, top-k, top-p and the draw, one program per row of logits.

Nothing is sorted. A bisection over the bits of a float32 finds the k-th largest logit, another one the logit
at which the probability above reaches top_p; both compare and sum, 32 times at most. Up to 8,192 logits stay
in registers from the load to the draw. Longer rows are read again in every step, from cache.

Sums have a fixed order, so codes are deterministic. Logits are mixed without fused multiply-adds, so what
top_k keeps is the same on every device, bit for bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mvar_kernels.backends.triton.launch import on_device_of
from mvar_kernels.backends.triton.primitives import LOG2E

LARGEST_HELD = 8_192
_CHUNK = 4_096
_PER_WARP = 1_024

LARGEST_FLOAT = tl.constexpr(torch.finfo(torch.float32).max)
# The least that top_p asks for, below the weight of the largest logit, 1: so one code is always kept.
LEAST_MASS = tl.constexpr(1e-30)


@triton.jit
def key_of(x):
    """Return the int32 that orders as the float32 does; 0 and -0 are equal."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


@triton.jit
def value_of(key):
    """Return the float32 of a key."""
    return tl.where(key < 0, -((-key).to(tl.float32, bitcast=True)), key.to(tl.float32, bitcast=True))


@triton.jit
def middle_of(low, high):
    """Return the mean rounded up, without the overflow of a sum."""
    return (low | high) - ((low ^ high) >> 1)


@triton.jit
def load_chunk(
    p_logits, p_unconditional, i_chunk, grown, guidance, stride_lv, stride_uv,
    V: tl.constexpr, BV: tl.constexpr, GUIDED: tl.constexpr,
):  # fmt: skip
    """Load [BV] guided logits: -inf past the end of the row and for NaN, the largest float for inf."""
    o_v = i_chunk * BV + tl.arange(0, BV)
    m_v = o_v < V
    b_x = tl.load(p_logits + o_v.to(tl.int64) * stride_lv, mask=m_v, other=0.0).to(tl.float32)
    if GUIDED:
        p_u = p_unconditional + o_v.to(tl.int64) * stride_uv
        b_x = b_x * grown - tl.load(p_u, mask=m_v, other=0.0).to(tl.float32) * guidance
    b_x = tl.where(m_v & (b_x == b_x), b_x, -float("inf"))
    return tl.minimum(b_x, LARGEST_FLOAT)


@triton.jit
def chunk(
    b_held, p_logits, p_unconditional, i_chunk, grown, guidance, stride_lv, stride_uv,
    V: tl.constexpr, BV: tl.constexpr, GUIDED: tl.constexpr,
):  # fmt: skip
    """Return [BV] guided logits: those in registers if that is the whole row, else loaded again."""
    if V > BV:
        return load_chunk(
            p_logits, p_unconditional, i_chunk, grown, guidance, stride_lv, stride_uv, V, BV, GUIDED
        )
    else:
        return b_held


@triton.jit
def weights_of(b_x, largest, least):
    """Return [BV] unnormalized probabilities, 0 below `least`."""
    return tl.where(b_x >= least, tl.exp2((b_x - largest) * LOG2E), 0.0)


@triton.jit
def kept_weights(b_x, largest, least, edge, above, edge_weight, wanted, ties, TOP_P: tl.constexpr):
    """Return [BV] weights after top_p, and how many logits equal to `edge` came so far.

    Of equal logits at the edge, one stays while the weights before it, `above` and those of the equal ones
    of lower index, do not reach `wanted`.
    """
    b_w = weights_of(b_x, largest, least)
    if TOP_P:
        b_equal = (b_x == edge).to(tl.int32)
        b_rank = ties + tl.cumsum(b_equal, 0) - b_equal
        b_inside = (b_equal > 0) & (above + b_rank.to(tl.float32) * edge_weight < wanted)
        b_w = tl.where((b_x > edge) | b_inside, b_w, 0.0)
        ties += tl.sum(b_equal, 0)
    return b_w, ties


@triton.jit
def first_beyond(b_cumulative, b_w, o_v, threshold, V: tl.constexpr):
    """Return the first index whose cumulative weight exceeds the threshold, or V."""
    # A parallel sum may rise by a rounding error where a weight is zero: such a code is not drawn.
    return tl.min(tl.where((b_cumulative > threshold) & (b_w > 0), o_v, V), 0)


# In both draws rounding can put the threshold on the very end of the sum, which means the last possible code.
@triton.jit
def draw_held(
    p_uniform, p_codes, M, b_x, largest, least, edge, above, edge_weight, wanted,
    V: tl.constexpr, BV: tl.constexpr, TOP_P: tl.constexpr,
):  # fmt: skip
    """Write the M codes of a row that is held as a whole."""
    o_v = tl.arange(0, BV)
    b_w, _ = kept_weights(b_x, largest, least, edge, above, edge_weight, wanted, 0, TOP_P)
    kept, last = tl.sum(b_w, 0), tl.max(tl.where(b_w > 0, o_v, 0), 0)
    b_cumulative = tl.cumsum(b_w, 0)
    for i_m in range(M):
        threshold = tl.load(p_uniform + i_m) * kept
        code = tl.minimum(first_beyond(b_cumulative, b_w, o_v, threshold, V), last)
        tl.store(p_codes + i_m, code.to(tl.int64))


@triton.jit
def draw_again(
    p_uniform, p_codes, M, p_l, p_u, grown, guidance, stride_lv, stride_uv,
    largest, least, edge, above, edge_weight, wanted,
    V: tl.constexpr, BV: tl.constexpr, GUIDED: tl.constexpr, TOP_P: tl.constexpr,
):  # fmt: skip
    """Write the M codes of a row that is read again, chunk by chunk, for each."""
    CHUNKS: tl.constexpr = (V + BV - 1) // BV
    kept, last, ties = 0.0, 0, 0
    for i in range(CHUNKS):
        b_x = load_chunk(p_l, p_u, i, grown, guidance, stride_lv, stride_uv, V, BV, GUIDED)
        b_w, ties = kept_weights(b_x, largest, least, edge, above, edge_weight, wanted, ties, TOP_P)
        kept += tl.sum(b_w, 0)
        last = tl.maximum(last, tl.max(tl.where(b_w > 0, i * BV + tl.arange(0, BV), 0), 0))
    for i_m in range(M):
        threshold = tl.load(p_uniform + i_m) * kept
        code, before, ties = V, 0.0, 0
        for i in range(CHUNKS):
            b_x = load_chunk(p_l, p_u, i, grown, guidance, stride_lv, stride_uv, V, BV, GUIDED)
            b_w, ties = kept_weights(b_x, largest, least, edge, above, edge_weight, wanted, ties, TOP_P)
            o_v = i * BV + tl.arange(0, BV)
            code = tl.minimum(code, first_beyond(before + tl.cumsum(b_w, 0), b_w, o_v, threshold, V))
            before += tl.sum(b_w, 0)
        tl.store(p_codes + i_m, tl.minimum(code, last).to(tl.int64))


@triton.jit(do_not_specialize=["INNER", "M", "top_k", "top_p", "grown", "guidance"])
def sample_kernel(
    LOGITS, UNCONDITIONAL, UNIFORM, CODES,
    INNER, M, top_k, top_p, grown, guidance,
    stride_lo, stride_li, stride_lv, stride_uo, stride_ui, stride_uv,
    V: tl.constexpr, BV: tl.constexpr, GUIDED: tl.constexpr, TOP_K: tl.constexpr, TOP_P: tl.constexpr,
):  # fmt: skip
    """Write CODES (rows, M) for UNIFORM (rows, M) of one row of LOGITS (rows / INNER, INNER, V)."""
    CHUNKS: tl.constexpr = (V + BV - 1) // BV
    i_row = tl.program_id(0).to(tl.int64)
    p_l = LOGITS + (i_row // INNER) * stride_lo + (i_row % INNER) * stride_li
    p_u = UNCONDITIONAL + (i_row // INNER) * stride_uo + (i_row % INNER) * stride_ui
    # [BV]
    b_held = load_chunk(p_l, p_u, 0, grown, guidance, stride_lv, stride_uv, V, BV, GUIDED)

    largest = tl.full([], -LARGEST_FLOAT, dtype=tl.float32)
    for i in range(CHUNKS):
        b_x = chunk(b_held, p_l, p_u, i, grown, guidance, stride_lv, stride_uv, V, BV, GUIDED)
        largest = tl.maximum(largest, tl.max(b_x, 0))
    high = key_of(largest)

    least = tl.full([], -float("inf"), dtype=tl.float32)
    if TOP_K:
        # At least top_k logits reach `low`, and fewer reach what is above `high`.
        low, top = key_of(least), high
        while low < top:
            middle = middle_of(low, top)
            threshold, count = value_of(middle), 0
            for i in range(CHUNKS):
                b_x = chunk(b_held, p_l, p_u, i, grown, guidance, stride_lv, stride_uv, V, BV, GUIDED)
                count += tl.sum((b_x >= threshold).to(tl.int32), 0)
            # With exactly top_k, this threshold is as good as the k-th logit itself.
            top = tl.where(count > top_k, top, tl.where(count == top_k, middle, middle - 1))
            low = tl.where(count >= top_k, middle, low)
        least = value_of(low)

    edge, above, edge_weight, wanted = least, 0.0, 0.0, 0.0
    if TOP_P:
        total = 0.0
        for i in range(CHUNKS):
            b_x = chunk(b_held, p_l, p_u, i, grown, guidance, stride_lv, stride_uv, V, BV, GUIDED)
            total += tl.sum(weights_of(b_x, largest, least), 0)
        wanted = tl.maximum(top_p * total, LEAST_MASS)
        # The weights from `low` on reach `wanted`, those above `high` do not.
        low, top = key_of(least), high
        while low < top:
            middle = middle_of(low, top)
            threshold, mass = value_of(middle), 0.0
            for i in range(CHUNKS):
                b_x = chunk(b_held, p_l, p_u, i, grown, guidance, stride_lv, stride_uv, V, BV, GUIDED)
                mass += tl.sum(weights_of(b_x, largest, threshold), 0)
            top = tl.where(mass >= wanted, top, middle - 1)
            low = tl.where(mass >= wanted, middle, low)
        edge = value_of(low)
        edge_weight = tl.exp2((edge - largest) * LOG2E)
        for i in range(CHUNKS):
            b_x = chunk(b_held, p_l, p_u, i, grown, guidance, stride_lv, stride_uv, V, BV, GUIDED)
            above += tl.sum(tl.where(b_x > edge, weights_of(b_x, largest, least), 0.0), 0)

    p_uniform, p_codes = UNIFORM + i_row * M, CODES + i_row * M
    if CHUNKS == 1:
        draw_held(
            p_uniform, p_codes, M, b_held, largest, least, edge, above, edge_weight, wanted, V, BV, TOP_P
        )
    else:
        draw_again(
            p_uniform, p_codes, M, p_l, p_u, grown, guidance, stride_lv, stride_uv,
            largest, least, edge, above, edge_weight, wanted, V, BV, GUIDED, TOP_P,
        )  # fmt: skip


def block_of(vocabulary: int) -> tuple[int, int]:
    """Return the logits that a program holds at a time, and its warps."""
    size = triton.next_power_of_2(vocabulary) if vocabulary <= LARGEST_HELD else _CHUNK
    return max(size, 32), max(1, size // _PER_WARP)


def draw_codes(
    logits: Tensor,
    unconditional: Tensor | None,
    uniform: Tensor,
    guidance: float,
    top_k: int,
    top_p: float,
) -> Tensor:
    """Launch the kernel.

    Args:
        logits: (outer, inner, V), any strides.
        unconditional: like logits, or None.
        uniform: (outer * inner, m) float32.
        guidance: as for `sample_codes`.
        top_k: as for `sample_codes`.
        top_p: as for `sample_codes`.

    Returns:
        (outer * inner, m) int64.
    """
    _, inner, vocabulary = logits.shape
    uniform = uniform.contiguous()
    codes = torch.empty(uniform.shape, dtype=torch.int64, device=logits.device)
    size, num_warps = block_of(vocabulary)
    # The kernel does not read what it gets without guidance.
    other = logits if unconditional is None else unconditional
    with on_device_of(logits):
        sample_kernel[(uniform.shape[0],)](
            logits, other, uniform, codes,
            inner, uniform.shape[1], top_k, top_p, 1 + guidance, guidance,
            *logits.stride(), *other.stride(),
            V=vocabulary, BV=size, GUIDED=unconditional is not None,
            TOP_K=0 < top_k < vocabulary, TOP_P=0 < top_p < 1,
            num_warps=num_warps, num_stages=1, enable_fp_fusion=False,
        )  # fmt: skip
    return codes
