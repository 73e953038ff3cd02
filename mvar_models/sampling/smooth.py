"""Mixing codes by a Gumbel softmax: nicer images, but not samples of the model, so not for metrics."""

from __future__ import annotations

import torch
from torch import Tensor

from mvar_models.sampling.filters import draw, filter_logits
from mvar_models.sampling.hooks import Choice
from mvar_models.sampling.sampler import Sampler

_TINY = 1e-20


class SmoothSampler(Sampler):
    """Adds mixtures of code vectors to f_hat in place of the drawn codes' vectors.

    The mixtures harden from coarse to fine, as the temperature falls.
    """

    def choose(self, logits: Tensor, choice: Choice) -> tuple[Tensor, Tensor]:
        filtered = filter_logits(logits, choice.top_k, choice.top_p)
        temperature = max(0.27 * (1 - 0.95 * choice.progress), 0.005)
        shape = filtered.shape[1:]
        uniform = torch.stack(
            [
                torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu")
                for generator in choice.generators
            ]
        )
        exponential = -torch.log(uniform.to(filtered.device).clamp_min(_TINY))
        gumbel = -torch.log(exponential.clamp_min(_TINY))
        weights = ((filtered * (1 + choice.progress) + gumbel) / temperature).softmax(dim=-1)
        codebook = choice.quantizer.code_vectors()
        return draw(filtered, choice.uniform), weights.to(codebook.dtype) @ codebook
