"""An edit drawn: squares cut out, kept codes put in their places, and the squares pasted back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mvar_models.networks.transformer import ScaleTransformer
from mvar_models.networks.vqvae import VQVAE
from mvar_models.pipeline.canvas import Canvas
from mvar_models.pipeline.decoding import Images, check_output_type, decode
from mvar_models.pipeline.drawing import draw_batches
from mvar_models.pipeline.options import CallOptions, Request
from mvar_models.pipeline.output import PipelineOutput
from mvar_models.records import converted, within
from mvar_models.sampling.hooks import GivenCodes
from mvar_models.sampling.inpainting import RULES, OwnScales, check_rule
from mvar_models.sampling.sampler import SampleResult

Pixels = Annotated[int, within(0, 2**16)]


@dataclass(frozen=True)
class Edit:
    """What to draw of which images.

    Attributes:
        canvases: The images, one per image of the call or one for all.
        rule: Name of the rule for kept cells; None draws every cell.
        own_scales: How many of the coarsest scales are the images' own.
        paste: Keep every pixel outside the mask as it was.
        feather: Width of the blend in pixels, see `Canvas.restore`.
    """

    canvases: list[Canvas]
    rule: str | None
    own_scales: int
    paste: bool
    feather: int | None


@torch.no_grad()
def draw_edit(
    model: ScaleTransformer,
    vqvae: VQVAE,
    edit: Edit,
    labels: list[int],
    output_type: str,
    options: CallOptions,
) -> PipelineOutput:
    """Draw an edit.

    Args:
        model: The transformer.
        vqvae: Its VQVAE.
        edit: What to draw.
        labels: Class of each image, or one for all.
        output_type: As for the pipeline's call.
        options: As for the pipeline's call.

    Raises:
        ValueError: an unknown rule or output type, numbers of images and labels or sizes that do not fit.
    """
    check_output_type(output_type)
    if edit.rule is not None:
        check_rule(edit.rule)
    edit = replace(edit, feather=converted(edit.feather, Pixels | None, "feather"))
    canvases, labels = alike(image=edit.canvases, labels=labels)
    _check_one_size(canvases, output_type)
    request = Request.of(model, labels, **options)
    copies = len(request.labels) // len(canvases)
    canvases = [canvas for canvas in canvases for _ in range(copies)]
    batches: list[SampleResult] = []
    restored: list[Tensor] = []
    for batch in _draw_squares(model, vqvae, edit, canvases, request):
        batches.append(batch)
        if output_type != "latent":
            squares = decode(vqvae, batch.f_hat, "pt")
            for square in cast(Tensor, squares).cpu():
                restored.append(canvases[len(restored)].restore(square, edit.paste, edit.feather))
    output = PipelineOutput.of([], batches, model.config, model.device)
    output.images = output.latents if output_type == "latent" else _typed(restored, output_type, model.device)
    return output


def _draw_squares(
    model: ScaleTransformer, vqvae: VQVAE, edit: Edit, canvases: Sequence[Canvas], request: Request
) -> Iterator[SampleResult]:
    """Draw the squares of an edit batch by batch."""
    quantizer, own, device = vqvae.quantizer, edit.own_scales, model.device
    count, resolution = len(model.config.sides), vqvae.config.resolution
    carries = model.new_state(torch.empty(0, dtype=torch.int64, device=device)).carries
    # A model that carries nothing starts at the first scale that is drawn.
    first = 0 if carries else own
    offset = (*model.pyramid.offsets, model.pyramid.length)[first]
    own_codes: list[Tensor] = []

    def prepare(images: slice) -> dict[str, Any]:
        squares = [canvas.square(resolution) for canvas in canvases[images]]
        pixels, redrawn = (torch.stack(parts).to(device) for parts in zip(*squares))
        given: GivenCodes | None = None
        if edit.rule is not None and own < count:
            given = RULES[edit.rule].of(vqvae, pixels, redrawn)
        if own == 0:
            return {"given": given}
        codes = vqvae.encode(pixels.to(vqvae.dtype))
        own_codes[:] = [codes]
        if first == 0 and own < count:
            return {"given": OwnScales(quantizer, codes, own, given)}
        *_, f_hat = (f_hat for _, f_hat in zip(range(own), quantizer.accumulate(codes)))
        return {"given": given, "f_hat": f_hat.float()}

    if own == count:
        for start in range(0, len(canvases), request.batch_size):
            f_hat = prepare(slice(start, start + request.batch_size))["f_hat"]
            yield SampleResult(own_codes[0], f_hat, None)
        return
    for drawn in draw_batches(model, quantizer, request, scales=range(first, count), prepare=prepare):
        if first:
            codes = torch.cat([own_codes[0][:, :offset], drawn.indices], dim=1)
            drawn = SampleResult(codes, drawn.f_hat, drawn.final_logits)
        yield drawn


def _typed(images: Sequence[Tensor], output_type: str, device: torch.device) -> Images:
    """Return images (3, H, W) in [0, 1] in the type asked for."""
    if output_type == "pt":
        return torch.stack(list(images)).to(device)
    arrays = [(image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy() for image in images]
    return np.stack(arrays) if output_type == "np" else [Image.fromarray(array) for array in arrays]


def alike(**lists: list[Any]) -> list[list[Any]]:
    """Repeat lists of one entry to the length of the longest.

    Args:
        lists: The lists by the names of the arguments.

    Raises:
        ValueError: a list has another length.
    """
    longest = max(len(values) for values in lists.values())
    for name, values in lists.items():
        if len(values) not in (1, longest):
            other = next(key for key, others in lists.items() if len(others) == longest)
            raise ValueError(f"{name} must be one, or one per {other} ({longest}), got {len(values)}")
    return [values * longest if len(values) == 1 else values for values in lists.values()]


def _check_one_size(canvases: Sequence[Canvas], output_type: str) -> None:
    sizes = list(dict.fromkeys(size_of(canvas.redrawn) for canvas in canvases))
    if output_type in ("np", "pt") and len(sizes) > 1:
        raise ValueError(
            f"output_type {output_type!r} needs images of one size, got {', '.join(sizes)}; 'pil' takes any"
        )


def size_of(image: Tensor) -> str:
    """Return the size of (..., H, W) as "W x H"."""
    return f"{image.shape[-1]} x {image.shape[-2]}"
