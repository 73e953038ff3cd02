"""The loop over scales, as VAR (arXiv 2404.02905) and MVAR (arXiv 2505.12742) released it.

Randomness: one uniform number per token, read on the CPU from the image's own generator. So the image of a
seed does not depend on batch size, order or device, and a token's number not on which scales are sampled.

A new sampler is a subclass of `Sampler` in a file of this folder, and one row of `SAMPLERS` in settings.py.
`hooks.py` has the types of the other hooks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mvar_kernels import sample_codes
from mvar_models.networks.quantizer import MultiScaleQuantizer
from mvar_models.networks.scalekv import ScaleKVCache, check_cache
from mvar_models.networks.state import ScaleState
from mvar_models.networks.transformer import ScaleTransformer
from mvar_models.randomness import UniformNumbers
from mvar_models.registry import resolve
from mvar_models.sampling.hooks import (
    GivenCodes,
    LogitsProcessor,
    ScaleCallback,
    ScaleContext,
    StopSampling,
)
from mvar_models.sampling.settings import (
    GUIDANCE_SCHEDULES,
    RELEASED_SCHEDULE,
    SAMPLERS,
    SamplingSettings,
)

# Logits that exist at a time: 256 tokens of 4,096 codes are 4 MiB per image, and guidance holds four copies.
_LOGITS_AT_A_TIME = 1 << 22


@dataclass(frozen=True)
class SampleResult:
    """Hold the codes and latents of a batch.

    Attributes:
        indices: (B, n) int64, the codes of the scales sampled; n is L if all are.
        f_hats: (B, z, h, h) float32 after each scale sampled.
        final_logits: (B, n, V), the guided logits of the last scale before processors and filters; None
            unless asked for.
        images: (B, 3, R, R) in [-1, 1], the decoded f_hat; None from `sample`, which does not decode.
    """

    indices: Tensor
    f_hats: tuple[Tensor, ...]
    final_logits: Tensor | None
    images: Tensor | None = None

    @property
    def f_hat(self) -> Tensor:
        """The latent that the decoder takes: (B, z, h, h)."""
        return self.f_hats[-1]


class Sampler:
    """Sample each token's code from its filtered distribution (ancestral); both hooks may be overridden.

    Attributes:
        reads_generators: Whether `choose` reads `context.generators`. If not, the uniform numbers of all
            scales are read at the start. A subclass with its own `choose` is taken to read them unless it
            says no.
    """

    reads_generators: bool = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "choose" in vars(cls) and "reads_generators" not in vars(cls):
            cls.reads_generators = True

    def choose(self, logits: Tensor, context: ScaleContext) -> tuple[Tensor, Tensor]:
        """Choose codes for guided logits (b, n, V).

        Returns:
            The codes (b, n) int64, and the vectors (b, n, z) that are added to f_hat for them.
        """
        settings = context.settings
        codes = sample_codes(logits, context.uniform, top_k=settings.top_k, top_p=settings.top_p)
        return codes, context.quantizer.codebook(codes)

    def after_scale(self, scale: int, f_hat: Tensor) -> Tensor:
        """Return the f_hat (B, z, h, h) passed to the next scale."""
        return f_hat


def make_sampler(sampler: str | Sampler) -> Sampler:
    """Return the sampler itself, or a new one by its name in `SAMPLERS`."""
    return resolve(SAMPLERS[sampler])() if isinstance(sampler, str) else sampler


@torch.no_grad()
def sample(
    model: ScaleTransformer,
    quantizer: MultiScaleQuantizer,
    labels: Tensor,
    generators: Sequence[torch.Generator] | UniformNumbers,
    settings: SamplingSettings,
    *,
    processors: Sequence[LogitsProcessor] = (),
    given: GivenCodes | None = None,
    scales: range | None = None,
    f_hat: Tensor | None = None,
    on_scale: ScaleCallback | None = None,
    keep_logits: bool = True,
) -> SampleResult:
    """Sample the codes of one image per label, scale by scale.

    Without hooks, and with all numbers read, it holds no copy from or to the host, and its shapes follow from
    the batch size alone, so that it can be captured as a graph.

    Args:
        model: The transformer.
        quantizer: The quantizer of the VQVAE whose codes the model predicts.
        labels: (B,) int64.
        generators: One CPU generator per image, or the numbers read from them.
        settings: Guidance, filters and sampler.
        processors: Applied in turn to the guided logits of each scale, before the filters.
        given: Replaces codes after the choice of each scale.
        scales: Scales to sample; default: all. Ranges that start later need `f_hat` and a model that carries
            nothing from scale to scale, such as MVAR; VAR needs the coarser scales' keys and values.
        f_hat: (B, z, h, h), the sum over the scales before `scales`.
        on_scale: Called after each scale with its index and f_hat so far. A tensor that it returns replaces
            f_hat; `StopSampling`, if raised, ends the loop. It sees f_hat itself, not a copy.
        keep_logits: Whether to return the last scale's guided logits.

    Raises:
        ValueError: not one generator or guidance scale each, or scales that cannot be sampled by themselves.
    """
    batch, config, scales = labels.shape[0], model.config, model.check_scales(scales)
    sampler, weights = make_sampler(settings.sampler), guidance_weights(model, settings)
    if not isinstance(generators, UniformNumbers):
        if len(generators) != batch:
            raise ValueError(f"generators must be one per label ({batch}), got {len(generators)}")
        by_scale = sampler.reads_generators
        generators = UniformNumbers(generators, model.pyramid, scales, by_scale, labels.device)
    state = start_state(model, labels, settings, guided=weights is not None)
    if scales.start and state.carries:
        raise ValueError(
            f"scales must start at 0, as {type(model).__name__} carries something from scale to scale, "
            f"got {scales!r}"
        )
    side = config.sides[-1]
    f_hat = _starting_f_hat(f_hat, scales, (batch, config.z_channels, side, side), labels.device)
    indices, f_hats, kept = [], [], []
    for scale in scales:
        inputs = quantizer.next_input(f_hat, scale)
        weight = 0.0 if weights is None else weights[scale]
        if weights is None:
            hidden = model.step(state, inputs, scale)
        elif weight == 0 and not state.carries:
            # Nothing reads the unconditional rows of this scale.
            hidden = model.step(state.first(batch), inputs, scale)
        else:
            hidden = model.step(state, torch.cat([inputs, inputs]), scale)
        whole = ScaleContext(
            scale, _progress(scale, len(config.sides)), slice(0, batch), generators.of_scale(scale),
            generators.generators, settings, quantizer, labels, f_hat, scales,
        )  # fmt: skip
        codes, vectors = [], []
        step = max(1, _LOGITS_AT_A_TIME // (hidden.shape[1] * config.vocab_size))
        for start in range(0, batch, step):
            context = whole.part(slice(start, min(start + step, batch)))
            logits = guided_logits(model, hidden, state, context.images, batch, weight)
            if keep_logits and scale == scales[-1]:
                kept.append(logits)
            for process in processors:
                logits = process(logits, context)
            chosen_codes, chosen_vectors = sampler.choose(logits, context)
            codes.append(chosen_codes)
            vectors.append(chosen_vectors)
        sampled, sampled_vectors = torch.cat(codes), torch.cat(vectors)
        if given is not None:
            sampled, sampled_vectors = given.replace(scale, f_hat, sampled, sampled_vectors)
        indices.append(sampled)
        contribution = quantizer.contribution_of_vectors(sampled_vectors, scale)
        f_hat = sampler.after_scale(scale, f_hat + contribution.float())
        stopped = False
        if on_scale is not None:
            try:
                f_hat = _replaced(f_hat, on_scale(scale, f_hat))
            except StopSampling:
                stopped = True
        f_hats.append(f_hat)
        if stopped:
            break
    return SampleResult(torch.cat(indices, dim=1), tuple(f_hats), torch.cat(kept) if kept else None)


def start_state(
    model: ScaleTransformer, labels: Tensor, settings: SamplingSettings, guided: bool
) -> ScaleState:
    """Return the state before the coarsest scale of labels (B,), with the cache that the settings ask for.

    Raises:
        ValueError: the model has no cache that could be smaller, or the budget is below the least.
    """
    state = model.new_guided_state(labels) if guided else model.new_state(labels)
    if settings.cache_budget < 1:
        check_cache(model, state)
        share, rule, drafters = settings.cache_budget, settings.cache_rule, settings.cache_drafters
        state.cache = ScaleKVCache(model.config, share, rule, drafters)
    return state


def guidance_weights(model: ScaleTransformer, settings: SamplingSettings) -> tuple[float, ...] | None:
    """Return the weight of guidance at every scale, or None if no scale needs an unconditional pass.

    Raises:
        ValueError: guidance_scale has another number of weights than the model has scales.
    """
    count, strength = len(model.config.sides), settings.guidance_scale
    if isinstance(strength, tuple):
        if len(strength) != count:
            raise ValueError(
                f"guidance_scale as a sequence must have one weight per scale ({count}), got {len(strength)}"
            )
        return strength if any(strength) else None
    # Released programs skip the pass at different strengths, which belongs to their schedule.
    skipped = (0.0, model.skips_guidance_at) if settings.guidance_schedule == RELEASED_SCHEDULE else (0.0,)
    if strength in skipped:
        return None
    schedule = GUIDANCE_SCHEDULES[settings.guidance_schedule]
    return tuple(strength * schedule(_progress(scale, count)) for scale in range(count))


def _progress(scale: int, num_scales: int) -> float:
    """Return the position of a scale from 0 (coarsest) to 1 (finest)."""
    return scale / max(num_scales - 1, 1)


def guided_logits(
    model: ScaleTransformer, hidden: Tensor, state: ScaleState, images: slice, batch: int, weight: float
) -> Tensor:
    """Compute the guided logits (b, n, V) float32 of some images of a batch: (1 + weight) c - weight u.

    Args:
        model: The transformer.
        hidden: (B, n, C) states before the head, or (2 B, n, C) with the unconditional rows after the others;
            the latter if `weight` is not 0.
        state: The state that `hidden` was computed with.
        images: Which of the B images.
        batch: B.
        weight: Weight of the guidance; 0 without.
    """
    conditional = model.logits(hidden, state.class_embedding, images, state.constants)
    if weight == 0:
        return conditional
    rows = slice(batch + images.start, batch + images.stop)
    unconditional = model.logits(hidden, state.class_embedding, rows, state.constants)
    return (1 + weight) * conditional - weight * unconditional


def _starting_f_hat(
    f_hat: Tensor | None, scales: range, shape: tuple[int, ...], device: torch.device
) -> Tensor:
    if scales.start == 0:
        if f_hat is not None:
            raise ValueError(f"f_hat is the sum over coarser scales, and {scales!r} has none before it")
        return torch.zeros(shape, dtype=torch.float32, device=device)
    if f_hat is None or tuple(f_hat.shape) != shape:
        shape_given = "none" if f_hat is None else tuple(f_hat.shape)
        raise ValueError(
            f"f_hat must be (B, z, h, h) = {shape} to start at scale {scales.start}, got {shape_given}"
        )
    return f_hat.to(device=device, dtype=torch.float32)


def _replaced(f_hat: Tensor, answer: object) -> Tensor:
    """Return the f_hat that a callback answered with; anything but a tensor changes nothing."""
    if not isinstance(answer, Tensor):
        return f_hat
    if answer.shape != f_hat.shape:
        raise ValueError(f"on_scale must return f_hat {tuple(f_hat.shape)}, got {tuple(answer.shape)}")
    return answer.to(device=f_hat.device, dtype=f_hat.dtype)
