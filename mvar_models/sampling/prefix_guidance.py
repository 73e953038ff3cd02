"""Prefix guidance (VPG, arXiv 2605.30317): away from what the model predicts after a corrupted prefix.

The paper's logits l + lambda (l - l'), with l' from a prefix in which a tenth of the positions hold another
position's embedding. Here the prefix of a scale is its own input and, in a VAR, the keys and values of the
inputs before it. Experimental: the code of the paper is unpublished, and for an MVAR it was never tried.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mvar_models.networks.state import ScaleState
from mvar_models.networks.transformer import ScaleTransformer
from mvar_models.networks.var import VARTransformer
from mvar_models.randomness import Purpose, generator
from mvar_models.records import converted
from mvar_models.sampling.hooks import ScaleContext
from mvar_models.sampling.sampler import guidance_weights, guided_logits, start_state

# What a corrupted position holds: another's whole embedding, as in the paper; or, which its ablation found
# worse, another's input under its own position, or a random code.
CORRUPTIONS = ("embedding", "input", "random-code")


class PrefixGuidance:
    """Compares guided logits with those of a second pass per scale over a corrupted prefix.

    Which positions are corrupted depends on the image's seed and the scale. Random numbers of codes stay what
    they are.

    Args:
        model: The transformer that samples.
        weight: lambda; 0 changes nothing and runs no second pass.
        share: Probability that a position is corrupted.
        corruption: What a corrupted position holds, one of `CORRUPTIONS`.

    Raises:
        ValueError: the share is not between 0 and 1, or the model cannot be corrupted that way.
    """

    def __init__(
        self, model: ScaleTransformer, weight: float, share: float = 0.1, corruption: str = "embedding"
    ) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"share must be between 0 and 1, got {share}")
        if corruption not in CORRUPTIONS:
            raise ValueError(f"corruption must be one of {', '.join(CORRUPTIONS)}, got {corruption!r}")
        if corruption == "embedding" and not isinstance(model, VARTransformer):
            raise ValueError(
                f"corruption 'embedding' moves learned positions, and {type(model).__name__} has none; "
                "use 'input'"
            )
        self.model, self.share, self.corruption = model, share, corruption
        self.weight: float = converted(weight, float, "weight")
        self._state: ScaleState | None = None
        self._hidden: Tensor | None = None

    def __call__(self, logits: Tensor, context: ScaleContext) -> Tensor:
        if self.weight == 0:
            return logits
        weights = guidance_weights(self.model, context.settings)
        if context.images.start == 0:
            self._step(context.whole or context, guided=weights is not None)
        if context.scale == 0:
            return logits  # nothing to corrupt before the coarsest scale
        assert self._hidden is not None and self._state is not None
        weight = 0.0 if weights is None else weights[context.scale]
        batch = len((context.whole or context).labels)
        corrupted = guided_logits(self.model, self._hidden, self._state, context.images, batch, weight)
        return logits + self.weight * (logits - corrupted)

    def _step(self, context: ScaleContext, guided: bool) -> None:
        """Run the model on the corrupted inputs of a batch, after those of the scales before."""
        model, scale = self.model, context.scale
        if self._state is None or scale == context.scales.start:
            self._state = start_state(model, context.labels, context.settings, guided)
        state, inputs = self._state, context.quantizer.next_input(context.f_hat, scale)
        inputs, source = self._corrupted(inputs, context)
        if guided:
            inputs, source = torch.cat([inputs, inputs]), torch.cat([source, source])
        if self.corruption == "embedding" and scale:
            assert isinstance(model, VARTransformer)
            embedded = model.embed(state.class_embedding, inputs, range(scale, scale + 1))
            moved = embedded.gather(1, source[..., None].expand_as(embedded))
            neighborhood = model.step_neighborhood(scale)
            self._hidden = model.run_blocks(moved, state.class_embedding, neighborhood, state=state)
        else:
            self._hidden = model.step(state, inputs, scale)

    def _corrupted(self, inputs: Tensor, context: ScaleContext) -> tuple[Tensor, Tensor]:
        """Return inputs (B, n, z), and which position's embedding each position gets, (B, n)."""
        tokens, codebook = inputs.shape[1], context.quantizer.code_vectors()
        own, sources, codes = np.arange(tokens), [], []
        for each in context.generators:
            rng = generator(each.initial_seed(), Purpose.CORRUPTION, context.scale)
            picked = rng.random(tokens) < self.share
            other = own + 1 + rng.integers(0, max(tokens - 1, 1), tokens)
            sources.append(np.where(picked, other, own) % max(tokens, 1))
            codes.append(rng.integers(0, len(codebook), tokens))
        source, code = (torch.from_numpy(np.stack(each)).to(inputs.device) for each in (sources, codes))
        if self.corruption == "input":
            inputs = inputs.gather(1, source[..., None].expand_as(inputs))
        elif self.corruption == "random-code":
            moved = source != torch.arange(tokens, device=source.device)
            inputs = torch.where(moved[..., None], codebook[code].to(inputs.dtype), inputs)
        return inputs, source
