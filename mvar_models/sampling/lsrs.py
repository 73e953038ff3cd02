"""Latent scale rejection sampling (LSRS, arXiv 2512.03796): the best of m candidates for each scale.

A candidate is a code per token, sampled as usual; a scorer judges the feature map that it would give. The
transformer runs once per scale, whatever m is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mvar_kernels import sample_codes
from mvar_models.networks.scorer import load_scorer
from mvar_models.randomness import uniform_numbers
from mvar_models.sampling.hooks import ScaleContext
from mvar_models.sampling.sampler import Sampler


class ScoredSampler(Sampler):
    """Keep, per image and scale, the candidate that a scorer finds most like a real image.

    The settings of the call name the scorer, the number of candidates and their scales. Where one candidate
    is sampled, the codes are those of ancestral sampling. Large numbers of candidates make images worse: the
    result is what the scorer likes best.
    """

    def choose(self, logits: Tensor, context: ScaleContext) -> tuple[Tensor, Tensor]:
        settings, quantizer = context.settings, context.quantizer
        count = settings.candidates
        scales = chosen_scales(settings.candidate_scales, len(quantizer.sides))
        if count == 1 or context.scale not in scales:
            return super().choose(logits, context)
        assert settings.scorer is not None, "SamplingSettings sees to it"
        scorer = load_scorer(settings.scorer, logits.device)
        batch, tokens = logits.shape[:2]
        more = uniform_numbers(context.generators, tokens * (count - 1)).to(logits.device)
        # (b, n, m); the first candidate is the one that ancestral sampling takes.
        uniform = torch.cat([context.uniform[..., None], more.view(batch, tokens, count - 1)], dim=-1)
        codes = sample_codes(logits, uniform, top_k=settings.top_k, top_p=settings.top_p)
        codes = codes.transpose(1, 2)  # (b, m, n)
        added = quantizer.contribution(codes.flatten(0, 1), context.scale).float()
        maps = context.f_hat.repeat_interleave(count, dim=0) + added
        scores = scorer(maps, context.labels.repeat_interleave(count), context.scale)
        best = codes[torch.arange(batch, device=codes.device), scores.view(batch, count).argmax(dim=1)]
        return best, quantizer.codebook(best)


def chosen_scales(text: str, count: int) -> range:
    """Return the scales, of `count`, that a slice such as "1:" names."""
    start, stop = (int(part) if part else None for part in text.split(":"))
    return range(count)[start:stop]
