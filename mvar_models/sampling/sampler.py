"""The loop over scales, as VAR (arXiv 2404.02905) and MVAR (arXiv 2505.12742) released it, and SAMPLERS.

Randomness: one uniform number per token, drawn on the CPU from the image's own generator. So the image of a
seed does not depend on batch size, order or device, and a token's number not on which scales are drawn.

A new sampler is a subclass of `Sampler` in a file of this folder, and one row of `SAMPLERS`. `hooks.py` has
the types of the other hooks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mvar_kernels import sample_codes
from mvar_models.networks.quantizer import MultiScaleQuantizer
from mvar_models.networks.transformer import ScaleTransformer
from mvar_models.registry import resolve
from mvar_models.sampling.guidance import (
    RELEASED_SCHEDULE,
    guidance_weights,
    guided_logits,
    progress_of,
)
from mvar_models.sampling.hooks import Choice, GivenCodes, LogitsProcessor, ScaleCallback, StopSampling
from mvar_models.sampling.preset import Preset
from mvar_models.sampling.uniforms import UniformNumbers

SAMPLERS: dict[str, str] = {
    "ancestral": "mvar_models.sampling.sampler:Sampler",
    "smooth": "mvar_models.sampling.smooth:SmoothSampler",
    "sorted": "mvar_models.sampling.sorting:SortingSampler",
}

# Logits that exist at a time: 256 tokens of 4,096 codes are 4 MiB per image, and guidance holds four copies.
_LOGITS_AT_A_TIME = 1 << 22


@dataclass(frozen=True)
class SampleResult:
    """What `sample` returns.

    Attributes:
        indices: (B, n) int64, the codes of the scales drawn; n is L if all are.
        f_hat: (B, z, h, h) float32, the latent that the decoder takes.
        final_logits: (B, n, V), the guided logits of the last scale before processors and filters; None
            unless asked for.
        images: (B, 3, R, R) in [-1, 1], the decoded f_hat; None from `sample`, which does not decode.
    """

    indices: Tensor
    f_hat: Tensor
    final_logits: Tensor | None
    images: Tensor | None = None


class Sampler:
    """Ancestral sampling: draws each token's code from its filtered distribution. Hooks may be overridden.

    Attributes:
        reads_generators: Whether `choose` reads `choice.generators`. If not, the uniform numbers of all
            scales are drawn at the start. A subclass with its own `choose` is taken to read them unless it
            says no.
    """

    reads_generators: bool = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "choose" in vars(cls) and "reads_generators" not in vars(cls):
            cls.reads_generators = True

    def choose(self, logits: Tensor, choice: Choice) -> tuple[Tensor, Tensor]:
        """Choose codes for guided logits (b, n, V).

        Returns:
            The codes (b, n) int64, and the vectors (b, n, z) that are added to f_hat for them.
        """
        codes = sample_codes(logits, choice.uniform, top_k=choice.top_k, top_p=choice.top_p)
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
    if not isinstance(sampler, str) or sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}")
    made: Sampler = resolve(SAMPLERS[sampler])()
    return made


@dataclass(frozen=True)
class Plan:
    """How the scales of any batch are drawn: the checked arguments of `sample` that no image decides.

    Attributes:
        weights: Guidance weight of every scale; None without guidance.
        top_k: See `filter_logits`.
        top_p: See `filter_logits`.
        sampler: Chooses the codes.
        scales: Scales to draw.
        processors: See `sample`.
        given: See `sample`.
        on_scale: See `sample`.
        keep_logits: See `sample`.
    """

    weights: tuple[float, ...] | None
    top_k: int
    top_p: float
    sampler: Sampler
    scales: range
    processors: tuple[LogitsProcessor, ...] = ()
    given: GivenCodes | None = None
    on_scale: ScaleCallback | None = None
    keep_logits: bool = False


@torch.no_grad()
def sample(
    model: ScaleTransformer,
    quantizer: MultiScaleQuantizer,
    labels: Tensor,
    generators: Sequence[torch.Generator],
    *,
    guidance_scale: float | Sequence[float],
    guidance_schedule: str = RELEASED_SCHEDULE,
    top_k: int = 0,
    top_p: float = 0.0,
    sampler: str | Sampler = "ancestral",
    processors: Sequence[LogitsProcessor] = (),
    given: GivenCodes | None = None,
    scales: range | None = None,
    f_hat: Tensor | None = None,
    on_scale: ScaleCallback | None = None,
    keep_logits: bool = True,
) -> SampleResult:
    """Draw the codes of one image per label, scale by scale.

    Args:
        model: The transformer.
        quantizer: The quantizer of the VQVAE whose codes the model predicts.
        labels: (B,) int64.
        generators: One CPU generator per image.
        guidance_scale: Weight of classifier-free guidance at the finest scale, or one weight per scale.
        guidance_schedule: How the weight grows to that: a name in `guidance.SCHEDULES`. Released: linear.
        top_k: See `filter_logits`.
        top_p: See `filter_logits`.
        sampler: A name in `SAMPLERS` or a `Sampler`.
        processors: Applied in turn to the guided logits of each scale, before the filters.
        given: Replaces codes after the choice of each scale.
        scales: Scales to draw; default: all. Ranges that start later need `f_hat` and a model that carries
            nothing from scale to scale, such as MVAR; VAR needs the coarser scales' keys and values.
        f_hat: (B, z, h, h), the sum over the scales before `scales`.
        on_scale: Called after each scale with its index and f_hat so far. A tensor that it returns replaces
            f_hat; `StopSampling`, if raised, ends the loop. It sees f_hat itself, not a copy.
        keep_logits: Whether to return the last scale's guided logits.

    Raises:
        TypeError: guidance or a filter is no number.
        ValueError: they are out of range, an unknown sampler or schedule, not one generator per label, or
            scales that cannot be drawn by themselves.
    """
    plan = make_plan(
        model, guidance_scale=guidance_scale, guidance_schedule=guidance_schedule, top_k=top_k, top_p=top_p,
        sampler=sampler, processors=processors, given=given, scales=scales, on_scale=on_scale,
        keep_logits=keep_logits,
    )  # fmt: skip
    check_generators(generators, labels)
    by_scale = plan.sampler.reads_generators
    numbers = UniformNumbers(generators, model.pyramid, plan.scales, by_scale, labels.device)
    return draw_scales(model, quantizer, labels, numbers, plan, f_hat)


def make_plan(
    model: ScaleTransformer,
    *,
    guidance_scale: float | Sequence[float],
    guidance_schedule: str = RELEASED_SCHEDULE,
    top_k: int = 0,
    top_p: float = 0.0,
    sampler: str | Sampler = "ancestral",
    processors: Sequence[LogitsProcessor] = (),
    given: GivenCodes | None = None,
    scales: range | None = None,
    on_scale: ScaleCallback | None = None,
    keep_logits: bool = True,
) -> Plan:
    """Check the arguments of `sample` that are the same for every batch; see there for both."""
    preset = Preset(guidance_scale, top_k, top_p, guidance_schedule)  # type: ignore[arg-type]  # it converts
    sampler = make_sampler(sampler)
    weights = guidance_weights(model, preset.guidance_scale, guidance_schedule)
    scales = model.check_scales(scales)
    return Plan(
        weights, preset.top_k, preset.top_p, sampler, scales, tuple(processors), given, on_scale, keep_logits
    )


def check_generators(generators: Sequence[torch.Generator], labels: Tensor) -> None:
    """Raise ValueError unless there is one generator per label."""
    if len(generators) != len(labels):
        raise ValueError(f"generators must be one per label ({len(labels)}), got {len(generators)}")


@torch.no_grad()
def draw_scales(
    model: ScaleTransformer,
    quantizer: MultiScaleQuantizer,
    labels: Tensor,
    numbers: UniformNumbers,
    plan: Plan,
    f_hat: Tensor | None = None,
) -> SampleResult:
    """Run the loop of `sample`; see there for the arguments and errors.

    Without hooks and with all numbers read it holds no copy from or to the host, and its shapes follow from
    the batch size alone, so that it can be captured as a graph.
    """
    batch, config, scales = labels.shape[0], model.config, plan.scales
    guided = plan.weights is not None
    state = model.new_guided_state(labels) if guided else model.new_state(labels)
    if scales.start and state.carries:
        raise ValueError(
            f"scales must start at 0, as {type(model).__name__} carries something from scale to scale, "
            f"got {scales!r}"
        )
    side = config.sides[-1]
    f_hat = _starting_f_hat(f_hat, scales, (batch, config.z_channels, side, side), labels.device)
    indices, kept = [], []
    for scale in scales:
        inputs = (
            quantizer.next_input(f_hat, scale) if scale else f_hat.new_empty((batch, 0, config.z_channels))
        )
        weight = 0.0 if plan.weights is None else plan.weights[scale]
        if not guided:
            hidden = model.step(state, inputs, scale)
        elif weight == 0 and not state.carries:
            # Nothing reads the unconditional rows of this scale.
            hidden = model.step(state.first(batch), inputs, scale)
        else:
            hidden = model.step(state, torch.cat([inputs, inputs]), scale)
        tokens, progress = hidden.shape[1], progress_of(scale, len(config.sides))
        uniform = numbers.of_scale(scale)
        codes, vectors = [], []
        step = max(1, _LOGITS_AT_A_TIME // (tokens * config.vocab_size))
        for start in range(0, batch, step):
            images = slice(start, min(start + step, batch))
            logits = guided_logits(model, hidden, state, images, batch, weight)
            if plan.keep_logits and scale == scales[-1]:
                kept.append(logits)
            choice = Choice(
                scale, progress, images, uniform[images], numbers.generators[images], plan.top_k, plan.top_p,
                quantizer, labels[images], f_hat[images], scales,
            )  # fmt: skip
            for process in plan.processors:
                logits = process(logits, choice)
            chosen_codes, chosen_vectors = plan.sampler.choose(logits, choice)
            codes.append(chosen_codes)
            vectors.append(chosen_vectors)
        drawn, vectors_drawn = torch.cat(codes), torch.cat(vectors)
        if plan.given is not None:
            drawn, vectors_drawn = plan.given.replace(scale, f_hat, drawn, vectors_drawn)
        indices.append(drawn)
        contribution = quantizer.contribution_of_vectors(vectors_drawn, scale)
        f_hat = plan.sampler.after_scale(scale, f_hat + contribution.float())
        if plan.on_scale is not None:
            try:
                answer = plan.on_scale(scale, f_hat)
            except StopSampling:
                break
            f_hat = _replaced(f_hat, answer)
    return SampleResult(torch.cat(indices, dim=1), f_hat, torch.cat(kept) if kept else None)


def _starting_f_hat(
    f_hat: Tensor | None, scales: range, shape: tuple[int, ...], device: torch.device
) -> Tensor:
    if scales.start == 0:
        if f_hat is not None:
            raise ValueError(f"f_hat is the sum over coarser scales, and {scales!r} has none before it")
        return torch.zeros(shape, dtype=torch.float32, device=device)
    if f_hat is None or tuple(f_hat.shape) != shape:
        found = "none" if f_hat is None else tuple(f_hat.shape)
        raise ValueError(
            f"f_hat must be (B, z, h, h) = {shape} to start at scale {scales.start}, got {found}"
        )
    return f_hat.to(device=device, dtype=torch.float32)


def _replaced(f_hat: Tensor, answer: object) -> Tensor:
    """Return the f_hat that a callback answered with; anything but a tensor changes nothing."""
    if not isinstance(answer, Tensor):
        return f_hat
    if answer.shape != f_hat.shape:
        raise ValueError(f"on_scale must return f_hat {tuple(f_hat.shape)}, got {tuple(answer.shape)}")
    return answer.to(device=f_hat.device, dtype=f_hat.dtype)
