"""The batches of a call, drawn one after the other."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mvar_models.networks.quantizer import MultiScaleQuantizer
from mvar_models.networks.transformer import ScaleTransformer
from mvar_models.pipeline.options import Request
from mvar_models.sampling.engine import Engine
from mvar_models.sampling.sampler import SampleResult, sample

# Arguments of `sample` for some of the images: given codes, scales, f_hat.
Prepare = Callable[[slice], dict[str, Any]]


def draw_batches(
    model: ScaleTransformer,
    quantizer: MultiScaleQuantizer,
    request: Request,
    *,
    scales: range | None = None,
    prepare: Prepare | None = None,
    after_scale: Callable[[int, Tensor], None] | None = None,
    engine: Engine | None = None,
) -> Iterator[SampleResult]:
    """Draw the images of a request, `request.batch_size` at a time.

    Args:
        model: The transformer.
        quantizer: The quantizer of its VQVAE.
        request: What to draw.
        scales: As for `sample`.
        prepare: Returns further arguments of `sample` for a batch.
        after_scale: Called after each scale, as `request.on_scale` is, and before it.
        engine: Draws in the place of `sample`; the progress bar then advances by batches.
    """
    draw = functools.partial(sample, model, quantizer) if engine is None else engine.sample
    # A callback keeps the engine from replaying a graph, so there is none that nobody asked for.
    watched = engine is None or after_scale is not None or request.on_scale is not None
    count = len(model.config.sides) if scales is None else len(scales)
    bar = tqdm(
        total=len(request.labels) * count,
        unit="scale",
        desc="sampling",
        dynamic_ncols=True,
        disable=not request.progress,
    )
    with bar:
        for start in range(0, len(request.labels), request.batch_size):
            images = slice(start, start + request.batch_size)
            labels = torch.tensor(request.labels[images], device=model.device)

            def on_scale(scale: int, f_hat: Tensor, count: int = len(labels)) -> object:
                if after_scale is not None:
                    after_scale(scale, f_hat)
                bar.update(count)
                return None if request.on_scale is None else request.on_scale(scale, f_hat)

            drawn = draw(
                labels,
                request.generators(images),
                request.settings,
                processors=request.processors,
                scales=scales,
                on_scale=on_scale if watched else None,
                keep_logits=False,
                **(prepare(images) if prepare is not None else {}),
            )
            if not watched:
                bar.update(count * len(labels))
            yield drawn
