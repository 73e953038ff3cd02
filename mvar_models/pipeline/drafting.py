"""Drafting: one model samples the coarse scales, another goes on from f_hat (CoDe, arXiv 2411.17787).

The coarse scales are few tokens and decide the layout, the fine ones are most of the tokens. A refiner that
is Markov over scales starts at its first scale; VAR first computes keys and values of the drafted ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any

import torch
import torch.nn.functional as F

from mvar_models.networks.quantizer import MultiScaleQuantizer
from mvar_models.networks.transformer import ScaleTransformer
from mvar_models.pipeline.request import Request, sample_batches
from mvar_models.records import converted, within
from mvar_models.sampling.inpainting import OwnScales
from mvar_models.sampling.sampler import SampleResult
from mvar_models.sampling.settings import SamplingSettings


def sample_drafted(
    drafter: ScaleTransformer,
    refiner: ScaleTransformer,
    quantizer: MultiScaleQuantizer,
    request: Request,
    refine_from: int,
    settings: SamplingSettings,
) -> Iterator[SampleResult]:
    """Sample scales 0 .. refine_from - 1 with one model and the others with another, batch by batch.

    Args:
        drafter: Samples the coarse scales, with the settings of the request.
        refiner: Samples the fine ones; it predicts the same codes of the same classes.
        quantizer: The quantizer of their VQVAE.
        request: What to sample.
        refine_from: First scale of the refiner.
        settings: Settings of the refiner.

    Raises:
        ValueError: the refiner has other codes, scales or classes, or there is no such scale.
    """
    count = len(drafter.config.sides)
    first = converted(refine_from, Annotated[int, within(1, count - 1)], "refine_from")
    for name in ("sides", "vocab_size", "z_channels", "num_classes"):
        ours, theirs = getattr(drafter.config, name), getattr(refiner.config, name)
        if ours != theirs:
            raise ValueError(f"refiner does not fit the model: {name} is {theirs}, the model has {ours}")
    names, others = drafter.config.class_names, refiner.config.class_names
    if names and others and names != others:
        raise ValueError("refiner does not fit the model: its classes have other names")
    carries = refiner.new_state(torch.empty(0, dtype=torch.int64, device=refiner.device)).carries
    draft: list[SampleResult] = []

    def prepare(images: slice) -> dict[str, Any]:
        if not carries:
            return {"f_hat": draft[-1].f_hat}
        codes = F.pad(draft[-1].indices, (0, drafter.config.length - draft[-1].indices.shape[1]))
        return {"given": OwnScales(quantizer, codes, first)}

    def on_scale(scale: int, f_hat: torch.Tensor) -> object:
        return None if request.on_scale is None or scale < first else request.on_scale(scale, f_hat)

    # The refiner reads the same generators from their start: a token's number depends on its seed alone.
    copies: Any = [
        source.clone_state() if isinstance(source, torch.Generator) else source for source in request.sources
    ]
    rest = replace(
        request, sources=copies, settings=settings, on_scale=on_scale, progress=False, share=1 - first / count
    )
    request = replace(request, share=first / count)
    scales = None if carries else range(first, count)
    refined = sample_batches(refiner, quantizer, rest, scales=scales, prepare=prepare)
    for batch in sample_batches(drafter, quantizer, request, scales=range(first)):
        draft[:] = [batch]
        fine = next(refined)
        start = first if carries else 0
        indices = fine.indices if carries else torch.cat([batch.indices, fine.indices], dim=1)
        yield replace(fine, indices=indices, f_hats=(*batch.f_hats, *fine.f_hats[start:]))
