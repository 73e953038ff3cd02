"""Sampling, scale by scale (VAR, arXiv 2404.02905, and MVAR, arXiv 2505.12742, as released).

Randomness: one uniform number per token and picture, drawn on the CPU from that picture's own generator, so the picture of a seed does not
change with batch size, order or device.

Memory: hidden states of one scale for the whole batch, logits and their sorted copies for a few pictures at a time (`_LOGITS_AT_A_TIME`);
with 256 tokens and 4,096 codes a picture's logits are 4 MiB and the filters hold about six copies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mvar_models.networks.quantizer import MultiScaleQuantizer
from mvar_models.networks.transformer import ScaleTransformer

_TINY = 1e-20
_LOGITS_AT_A_TIME = 1 << 22


class SampleResult:
    """indices (B, L), f_hat (B, z, h, h), and on request the guided logits of the last scale before filtering, (B, n, V)."""

    def __init__(self, indices: Tensor, f_hat: Tensor, final_logits: Tensor | None) -> None:
        self.indices = indices
        self.f_hat = f_hat
        self.final_logits = final_logits


def filter_logits(logits: Tensor, top_k: int = 0, top_p: float = 0.0) -> Tensor:
    """Logits (..., V) with those that may not be drawn set to -inf.

    Keeps the top_k largest (ties at the k-th are kept), then, renormalised, the smallest set whose probability is at least top_p. 0 switches
    either off.

    Raises:
        ValueError: top_k below 0 or top_p outside 0 .. 1.
    """
    check_filters(top_k, top_p)
    if 0 < top_k < logits.shape[-1]:
        kth = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < kth, float("-inf"))
    if 0 < top_p < 1:
        descending, order = logits.sort(dim=-1, descending=True)
        probability = descending.softmax(dim=-1)
        before = probability.cumsum(dim=-1) - probability
        drop = torch.empty_like(before, dtype=torch.bool).scatter_(-1, order, before >= top_p)
        logits = logits.masked_fill(drop, float("-inf"))
    return logits


def check_filters(top_k: int, top_p: float) -> None:
    if top_k < 0:
        raise ValueError(f"top_k must be 0 (off) or a positive number of codes, got {top_k}")
    if not 0 <= top_p <= 1:
        raise ValueError(f"top_p must be between 0 (off) and 1, got {top_p}")


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Categorical draw by inversion: logits (B, n, V) and uniform (B, n) in [0, 1) -> (B, n) int64."""
    cumulative = logits.float().softmax(dim=-1).cumsum(dim=-1)
    threshold = uniform.unsqueeze(-1) * cumulative[..., -1:]
    picked = torch.searchsorted(cumulative, threshold, right=True).squeeze(-1)
    # Rounding can put a threshold on the very end; then the last code with any probability is the right one.
    last = logits.shape[-1] - 1 - logits.isfinite().flip(-1).int().argmax(dim=-1)
    return torch.minimum(picked, last)


@torch.no_grad()
def sample(
    model: ScaleTransformer,
    quantizer: MultiScaleQuantizer,
    labels: Tensor,
    generators: Sequence[torch.Generator],
    *,
    guidance_scale: float,
    top_k: int = 0,
    top_p: float = 0.0,
    more_smooth: bool = False,
    on_scale: Callable[[int, Tensor], None] | None = None,
    keep_logits: bool = True,
) -> SampleResult:
    """Draw codes for labels (B,), one CPU generator per picture.

    Args:
        guidance_scale: w; at scale s logits are (1 + t) conditional - t unconditional with t = w s / (S - 1). No unconditional pass is made
            at w = 0, nor for MVAR at w = 1, as its released program defines it.
        top_k, top_p: see `filter_logits`.
        more_smooth: mix codes by a Gumbel softmax instead of drawing one; for pictures, not for metrics.
        on_scale: called after each scale with its number and f_hat so far.
        keep_logits: return the last scale's guided logits too; off saves their memory.
    """
    check_filters(top_k, top_p)
    batch, num_scales = labels.shape[0], len(model.config.sides)
    if len(generators) != batch:
        raise ValueError(f"one generator per picture is needed: {batch} labels, {len(generators)} generators")
    guided = guidance_scale not in (0.0, model.skips_guidance_at)
    classes = torch.cat([labels, torch.full_like(labels, model.config.num_classes)]) if guided else labels
    class_embedding = model.class_embedding(classes)
    cache = model.new_cache()
    side = model.config.sides[-1]
    f_hat = class_embedding.new_zeros((batch, model.config.z_channels, side, side), dtype=torch.float32)
    indices = []
    for scale in range(num_scales):
        inputs = (
            quantizer.next_input(f_hat, scale)
            if scale
            else f_hat.new_empty((batch, 0, model.config.z_channels))
        )
        inputs = torch.cat([inputs, inputs]) if guided else inputs
        hidden = model.embed(class_embedding, inputs, range(scale, scale + 1))
        hidden = model.run_blocks(hidden, class_embedding, model.step_neighborhood(scale), cache=cache)
        progress = scale / max(num_scales - 1, 1)
        tokens = hidden.shape[1]
        uniform = torch.stack([torch.rand(tokens, generator=g, dtype=torch.float64) for g in generators])
        uniform = uniform.float().clamp_max(1 - 2**-24).to(hidden.device)
        at_a_time = max(1, _LOGITS_AT_A_TIME // (tokens * model.config.vocab_size))
        codes, vectors, kept = [], [], []
        for start in range(0, batch, at_a_time):
            rows = slice(start, min(start + at_a_time, batch))
            logits = model.logits(hidden[:batch][rows], class_embedding[:batch][rows])
            if guided:
                weight = guidance_scale * progress
                unconditional = model.logits(hidden[batch:][rows], class_embedding[batch:][rows])
                logits = (1 + weight) * logits - weight * unconditional
            if keep_logits and scale == num_scales - 1:
                kept.append(logits)
            filtered = filter_logits(logits, top_k, top_p)
            codes.append(draw(filtered, uniform[rows]))
            if more_smooth:
                vectors.append(_mixed_codes(filtered, quantizer, generators[rows], progress))
        indices.append(torch.cat(codes))
        if more_smooth:
            contribution = quantizer.contribution_of_vectors(torch.cat(vectors), scale)
        else:
            contribution = quantizer.contribution(indices[-1], scale)
        f_hat = f_hat + contribution.float()
        if on_scale is not None:
            on_scale(scale, f_hat)
    return SampleResult(torch.cat(indices, dim=1), f_hat, torch.cat(kept) if kept else None)


def _mixed_codes(
    logits: Tensor, quantizer: MultiScaleQuantizer, generators: Sequence[torch.Generator], progress: float
) -> Tensor:
    """Gumbel-softmax mixtures of codes, hardening from coarse to fine: (B, n, z)."""
    temperature = max(0.27 * (1 - 0.95 * progress), 0.005)
    shape = logits.shape[1:]
    uniform = torch.stack([torch.rand(shape, generator=g) for g in generators]).to(logits.device)
    exponential = -torch.log(uniform.clamp_min(_TINY))
    gumbel = -torch.log(exponential.clamp_min(_TINY))
    weights = ((logits * (1 + progress) + gumbel) / temperature).softmax(dim=-1)
    return weights.to(quantizer.codebook.weight.dtype) @ quantizer.codebook.weight
