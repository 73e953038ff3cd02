"""Latent scale rejection sampling (LSRS, arXiv 2512.03796): the best of m candidates for each scale.

A candidate is a code per token, sampled as usual; a scorer judges the feature map that it would give. The
transformer runs once per scale, whatever m is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mvar_kernels import sample_codes
from mvar_models.networks.scorer import Scorer
from mvar_models.sampling.hooks import ScaleContext
from mvar_models.sampling.sampler import Sampler
from mvar_models.sampling.uniforms import uniform_numbers


class ScoredSampler(Sampler):
    """Keeps, per image and scale, the candidate that a scorer finds most like a real image.

    Large numbers of candidates make images worse: the result is what the scorer likes best. Where one
    candidate is sampled, the codes are those of ancestral sampling.

    Args:
        scorer: Trained on samples of the model in use, by `ranking_loss`.
        candidates: Candidates per image and scale.
        scales: Scales with candidates; default: all but the coarsest, as released.
    """

    reads_generators = True

    def __init__(self, scorer: Scorer, candidates: int = 4, scales: range | None = None) -> None:
        if candidates < 1:
            raise ValueError(f"candidates must be at least 1, got {candidates}")
        self.scorer, self.candidates = scorer.eval(), candidates
        self.scales = range(1, len(scorer.config.sides)) if scales is None else scales

    def choose(self, logits: Tensor, context: ScaleContext) -> tuple[Tensor, Tensor]:
        if self.candidates == 1 or context.scale not in self.scales:
            return super().choose(logits, context)
        quantizer, settings = context.quantizer, context.settings
        batch, tokens, count = *logits.shape[:2], self.candidates
        more = uniform_numbers(context.generators, tokens * (count - 1)).to(logits.device)
        # (b, m, n); the first candidate is the one that ancestral sampling takes.
        uniform = torch.cat([context.uniform[:, None], more.view(batch, count - 1, tokens)], dim=1)
        codes = torch.stack(
            [
                sample_codes(logits, uniform[:, each], top_k=settings.top_k, top_p=settings.top_p)
                for each in range(count)
            ],
            dim=1,
        )
        added = quantizer.contribution(codes.flatten(0, 1), context.scale).float()
        maps = context.f_hat.repeat_interleave(count, dim=0) + added
        scores = self.scorer(maps, context.labels.repeat_interleave(count), context.scale)
        best = codes[torch.arange(batch, device=codes.device), scores.view(batch, count).argmax(dim=1)]
        return best, quantizer.codebook(best)
