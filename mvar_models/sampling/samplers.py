"""Samplers besides ancestral sampling, and filters and the draw by a sort, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from mvar_models.sampling.hooks import ScaleContext
from mvar_models.sampling.sampler import Sampler

_TINY = 1e-20


class SmoothSampler(Sampler):
    """Adds mixtures of code vectors to f_hat in place of the drawn codes' vectors.

    The mixtures harden from coarse to fine, as the temperature falls.
    """

    def choose(self, logits: Tensor, context: ScaleContext) -> tuple[Tensor, Tensor]:
        filtered = filter_logits(logits, context.settings.top_k, context.settings.top_p)
        temperature = 0.27 * (1 - 0.95 * context.progress)
        shape = filtered.shape[1:]
        uniform = torch.stack(
            [
                torch.rand(shape, generator=each, dtype=torch.float32, device="cpu")
                for each in context.generators
            ]
        )
        exponential = -torch.log(uniform.to(filtered.device).clamp_min(_TINY))
        gumbel = -torch.log(exponential.clamp_min(_TINY))
        weights = ((filtered * (1 + context.progress) + gumbel) / temperature).softmax(dim=-1)
        codebook = context.quantizer.code_vectors()
        return draw(filtered, context.uniform), weights.to(codebook.dtype) @ codebook


def filter_logits(logits: Tensor, top_k: int = 0, top_p: float = 0.0) -> Tensor:
    """Set the logits of excluded codes to -inf; top_k applies first, top_p to what it leaves.

    Args:
        logits: (..., V).
        top_k: Number of largest logits to keep; codes tied with the last of them are kept too. 0 is off.
        top_p: Keep the smallest set of codes with at least this probability in total. 0 and 1 are off.
    """
    if 0 < top_k < logits.shape[-1]:
        kth = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < kth, float("-inf"))
    if 0 < top_p < 1:
        descending, order = logits.sort(dim=-1, descending=True)
        probability = descending.softmax(dim=-1)
        # A code stays while the codes before it do not reach top_p, so the one that crosses it stays too.
        before = probability.cumsum(dim=-1) - probability
        drop = torch.empty_like(before, dtype=torch.bool).scatter_(-1, order, before >= top_p)
        logits = logits.masked_fill(drop, float("-inf"))
    return logits


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Sample from the categorical distribution of the logits by inverting its cumulative sum.

    Args:
        logits: (..., V); -inf excludes a code.
        uniform: (...) in [0, 1), one number per code.

    Returns:
        (...) int64.
    """
    cumulative = logits.float().softmax(dim=-1).cumsum(dim=-1)
    # The sum rounds to a little more or less than 1, so the threshold is taken relative to it.
    threshold = uniform.unsqueeze(-1) * cumulative[..., -1:]
    codes = torch.searchsorted(cumulative, threshold, right=True).squeeze(-1)
    # Rounding can still put a threshold on the very end; the last possible code is then the right one.
    last = logits.shape[-1] - 1 - logits.isfinite().flip(-1).int().argmax(dim=-1)
    return torch.minimum(codes, last)
