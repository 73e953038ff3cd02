"""Drawing by a sort of all logits: the definition in plain PyTorch, several times slower than "ancestral"."""

from __future__ import annotations

from torch import Tensor

from mvar_models.sampling.filters import draw, filter_logits
from mvar_models.sampling.hooks import Choice
from mvar_models.sampling.sampler import Sampler


class SortingSampler(Sampler):
    """Filters and draws as this project did before `mvar_kernels.sample_codes`: the same images, bit for bit.

    Codes differ from those of `Sampler` only where a uniform number or the edge of a filter lies within
    float32's rounding.
    """

    reads_generators = False

    def choose(self, logits: Tensor, choice: Choice) -> tuple[Tensor, Tensor]:
        codes = draw(filter_logits(logits, choice.top_k, choice.top_p), choice.uniform)
        return codes, choice.quantizer.codebook(codes)
