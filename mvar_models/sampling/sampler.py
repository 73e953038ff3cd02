"""The loop over scales, as VAR (arXiv 2404.02905) and MVAR (arXiv 2505.12742) released it, and SAMPLERS.

Randomness: one uniform number per token, drawn on the CPU from the image's own generator. So the image of a
seed does not depend on batch size, order or device.

A new sampler is a subclass of `Sampler` in a file of this folder, and one row of `SAMPLERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mvar_models.networks.quantizer import MultiScaleQuantizer
from mvar_models.networks.transformer import ScaleTransformer
from mvar_models.registry import resolve
from mvar_models.sampling.filters import check_filters, draw, filter_logits
from mvar_models.sampling.guidance import (
    guidance_weight,
    guided_logits,
    is_guided,
    progress_of,
    with_unconditional,
)

SAMPLERS: dict[str, str] = {
    "ancestral": "mvar_models.sampling.sampler:Sampler",
    "smooth": "mvar_models.sampling.smooth:SmoothSampler",
}

# Logits that exist at a time: 256 tokens of 4,096 codes are 4 MiB per image, and the filters hold six copies.
_LOGITS_AT_A_TIME = 1 << 22


@dataclass(frozen=True)
class SampleResult:
    """What `sample` returns.

    Attributes:
        indices: (B, L) int64, the drawn codes.
        f_hat: (B, z, h, h) float32, the latent that the decoder takes.
        final_logits: (B, n, V), the guided logits of the last scale before filtering; None unless asked for.
    """

    indices: Tensor
    f_hat: Tensor
    final_logits: Tensor | None


@dataclass(frozen=True)
class Choice:
    """What a sampler knows when it chooses the codes of one scale for b images of the batch.

    Attributes:
        scale: Index of the scale; 0 is the coarsest.
        progress: Position of the scale, from 0 (coarsest) to 1 (finest).
        images: Which images of the batch these are.
        uniform: (b, n) float32 in [0, 1), one number per token.
        generators: CPU generators of these images, for further random numbers.
        top_k: See `filter_logits`.
        top_p: See `filter_logits`.
        quantizer: Holds the codebook.
    """

    scale: int
    progress: float
    images: slice
    uniform: Tensor
    generators: Sequence[torch.Generator]
    top_k: int
    top_p: float
    quantizer: MultiScaleQuantizer


class Sampler:
    """Ancestral sampling: draws each token's code from its filtered distribution. Hooks may be overridden."""

    def choose(self, logits: Tensor, choice: Choice) -> tuple[Tensor, Tensor]:
        """Choose codes for guided logits (b, n, V).

        Returns:
            The codes (b, n) int64, and the vectors (b, n, z) that are added to f_hat for them.
        """
        codes = draw(filter_logits(logits, choice.top_k, choice.top_p), choice.uniform)
        return codes, choice.quantizer.codebook(codes)

    def after_scale(self, scale: int, f_hat: Tensor) -> Tensor:
        """Return the f_hat (B, z, h, h) to go on with after a scale."""
        return f_hat


def make_sampler(sampler: str | Sampler) -> Sampler:
    """Return the sampler itself, or a new one by its name in `SAMPLERS`.

    Raises:
        ValueError: no sampler of that name.
    """
    if isinstance(sampler, Sampler):
        return sampler
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}")
    made: Sampler = resolve(SAMPLERS[sampler])()
    return made


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
    sampler: str | Sampler = "ancestral",
    on_scale: Callable[[int, Tensor], None] | None = None,
    keep_logits: bool = True,
) -> SampleResult:
    """Draw the codes of one image per label, scale by scale.

    Args:
        model: The transformer.
        quantizer: The quantizer of the VQVAE whose codes the model predicts.
        labels: (B,) int64.
        generators: One CPU generator per image.
        guidance_scale: Weight of classifier-free guidance at the finest scale; it grows linearly from 0.
        top_k: See `filter_logits`.
        top_p: See `filter_logits`.
        sampler: A name in `SAMPLERS` or a `Sampler`.
        on_scale: Called after each scale with its index and f_hat so far.
        keep_logits: Whether to return the last scale's guided logits.

    Raises:
        ValueError: filters out of range, an unknown sampler, or not one generator per label.
    """
    check_filters(top_k, top_p)
    sampler = make_sampler(sampler)
    config = model.config
    batch, num_scales, side = labels.shape[0], len(config.sides), config.sides[-1]
    if len(generators) != batch:
        raise ValueError(f"generators must be one per label ({batch}), got {len(generators)}")
    guided = is_guided(model, guidance_scale)
    state = model.new_state(with_unconditional(labels, config.num_classes) if guided else labels)
    f_hat = torch.zeros((batch, config.z_channels, side, side), device=labels.device)
    indices, kept = [], []
    for scale in range(num_scales):
        inputs = (
            quantizer.next_input(f_hat, scale) if scale else f_hat.new_empty((batch, 0, config.z_channels))
        )
        hidden = model.step(state, torch.cat([inputs, inputs]) if guided else inputs, scale)
        tokens, progress = hidden.shape[1], progress_of(scale, num_scales)
        weight = guidance_weight(guidance_scale, progress) if guided else None
        uniform = _uniform_numbers(generators, tokens).to(hidden.device)
        codes, vectors = [], []
        step = max(1, _LOGITS_AT_A_TIME // (tokens * config.vocab_size))
        for start in range(0, batch, step):
            images = slice(start, min(start + step, batch))
            logits = guided_logits(model, hidden, state.class_embedding, images, weight)
            if keep_logits and scale == num_scales - 1:
                kept.append(logits)
            choice = Choice(
                scale, progress, images, uniform[images], generators[images], top_k, top_p, quantizer
            )
            chosen_codes, chosen_vectors = sampler.choose(logits, choice)
            codes.append(chosen_codes)
            vectors.append(chosen_vectors)
        indices.append(torch.cat(codes))
        contribution = quantizer.contribution_of_vectors(torch.cat(vectors), scale)
        f_hat = sampler.after_scale(scale, f_hat + contribution.float())
        if on_scale is not None:
            on_scale(scale, f_hat)
    return SampleResult(torch.cat(indices, dim=1), f_hat, torch.cat(kept) if kept else None)


def _uniform_numbers(generators: Sequence[torch.Generator], tokens: int) -> Tensor:
    """One float32 number in [0, 1) per token of each image: (B, n)."""
    numbers = [torch.rand(tokens, generator=each, dtype=torch.float64) for each in generators]
    # Rounding to float32 could give 1, which would be past the end of every distribution.
    return torch.stack(numbers).float().clamp_max(1 - 2**-24)
