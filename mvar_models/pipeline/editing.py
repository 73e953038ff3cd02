"""In-painting, out-painting and variations: the methods of every pipeline that take an image.

Squares are cut out, kept codes put in their places scale by scale, and the squares pasted back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mvar_models.config import Share
from mvar_models.networks.transformer import ScaleTransformer
from mvar_models.networks.vqvae import VQVAE
from mvar_models.pipeline.canvas import Canvas, extended
from mvar_models.pipeline.inputs import ImageInput, images_of, masks_of
from mvar_models.pipeline.output import Images, PipelineOutput, check_output_type, decode
from mvar_models.pipeline.request import CallOptions, Labels, Request, sample_batches
from mvar_models.records import converted, within
from mvar_models.sampling.hooks import GivenCodes
from mvar_models.sampling.inpainting import RULES, OwnScales, check_rule
from mvar_models.sampling.sampler import SampleResult

if TYPE_CHECKING:
    from typing_extensions import Unpack

Pixels = Annotated[int, within(0, 2**16)]
# What (1 - strength) S may lack of a whole number by rounding.
_ROUNDING = 1e-9


class Editing:
    """The editing methods, which `Pipeline` inherits."""

    model: ScaleTransformer
    vqvae: VQVAE

    if TYPE_CHECKING:

        def numbers_of(self, labels: Labels) -> list[int]: ...

    def inpaint(
        self,
        image: ImageInput,
        mask_image: ImageInput,
        labels: Labels | None = None,
        *,
        strength: float = 1.0,
        paste: bool = True,
        rule: str = "closed",
        feather: int | None = None,
        padding_mask_crop: int | None = None,
        output_type: str = "pil",
        **options: Unpack[CallOptions],
    ) -> PipelineOutput:
        """In-paint: sample the white part of a mask.

        Args:
            image: A file's path, a PIL image, an array (H, W, 3), a tensor (3, H, W), or a list or batch of
                them, read as `mvar edit` reads files. Of any size: the model sees a square at its own
                resolution, which then goes back to its place.
            mask_image: White where the image is sampled, black where it stays; of the image's size. One mask
                serves all images.
            labels: Class of each image, or one for all; one image with several labels is edited once per
                label. Default: the unconditional class, without guidance.
            strength: Share of the scales that are sampled, 0 to 1; the coarsest floor((1 - strength) S) of
                the S scales are the image's own, so that its layout stays.
            paste: Keep every pixel outside the mask as it was. Otherwise the whole square comes from the
                VQVAE's decoder.
            rule: "closed" hides what is in the hole from the model; "released" is the rule of the released
                programs, whose codes know it. See `mvar_models.sampling.inpainting`.
            feather: Width of the blend along the edge of the mask, inside it, in pixels of the image.
                Default: 1/32 of the square's side.
            padding_mask_crop: Sample only a square around the mask with this margin in pixels, which gives
                small masks in large images the model's whole resolution. Default: the whole image.
            output_type: As for the pipeline's call; "latent" is that of the square.
            options: As for the pipeline's call: seed, generator, guidance_scale, top_k, top_p, sampler, ...

        Returns:
            Images of the size of `image`, of the type that the pipeline's call returns.

        Raises:
            TypeError: images, masks or labels of another type.
            ValueError: shapes, sizes or numbers that do not fit, an unknown rule or output type.
        """
        padding_mask_crop = converted(padding_mask_crop, Pixels | None, "padding_mask_crop")
        pairs = list(zip(*broadcast_lists(image=images_of(image), mask_image=masks_of(mask_image))))
        for pixels, mask in pairs:
            if pixels.shape[1:] != mask.shape:
                sizes = f"{size_of(pixels)}, got {size_of(mask)}"
                raise ValueError(f"mask_image must have the size of image, {sizes}")
        canvases = [Canvas.of(pixels, mask, padding_mask_crop) for pixels, mask in pairs]
        own = own_scales(strength, len(self.model.config.sides))
        edit = Edit(canvases, rule, own, paste, feather)
        return self._edited(edit, labels, output_type, options)

    def outpaint(
        self,
        image: ImageInput,
        padding: int | Sequence[int],
        labels: Labels | None = None,
        *,
        strength: float = 1.0,
        paste: bool = True,
        rule: str = "closed",
        feather: int | None = None,
        output_type: str = "pil",
        **options: Unpack[CallOptions],
    ) -> PipelineOutput:
        """Out-paint: enlarge an image and sample what is new.

        Args:
            image: As for `inpaint`.
            padding: Pixels to add on every side, or on the left, at the top, on the right and at the bottom.
            labels: As for `inpaint`.
            strength: As for `inpaint`; an own coarse scale is one of the image with its edge repeated.
            paste: As for `inpaint`.
            rule: As for `inpaint`.
            feather: As for `inpaint`.
            output_type: As for the pipeline's call.
            options: As for the pipeline's call.

        Returns:
            Images of the enlarged size.

        Raises:
            TypeError: as `inpaint`, or padding that is not one or four numbers.
            ValueError: as `inpaint`, or padding below 0.
        """
        sides = _four(padding)
        canvases = [Canvas.of(*extended(each, sides)) for each in images_of(image)]
        own = own_scales(strength, len(self.model.config.sides))
        edit = Edit(canvases, rule, own, paste, feather)
        return self._edited(edit, labels, output_type, options)

    def vary(
        self,
        image: ImageInput,
        from_scale: int,
        labels: Labels | None = None,
        *,
        output_type: str = "pil",
        **options: Unpack[CallOptions],
    ) -> PipelineOutput:
        """Vary: sample the fine scales of an image anew.

        A model that is Markov over scales computes those scales alone; VAR computes the coarser ones too, for
        its cache.

        Args:
            image: As for `inpaint`.
            from_scale: First scale that is sampled, 0 for a fresh image; the number of scales is the VQVAE's
                reconstruction.
            labels: As for `inpaint`.
            output_type: As for the pipeline's call.
            options: As for the pipeline's call.

        Returns:
            Images of the size of `image`.

        Raises:
            TypeError: as `inpaint`.
            ValueError: as `inpaint`, or no such scale.
        """
        last = len(self.model.config.sides)
        from_scale = converted(from_scale, Annotated[int, within(0, last)], "from_scale")
        canvases = [
            Canvas.of(each, torch.ones(each.shape[1:], dtype=torch.bool, device=each.device))
            for each in images_of(image)
        ]
        edit = Edit(canvases, None, from_scale, paste=False, feather=None)
        return self._edited(edit, labels, output_type, options)

    @torch.no_grad()
    def _edited(
        self, edit: Edit, labels: Labels | None, output_type: str, options: CallOptions
    ) -> PipelineOutput:
        """Sample an edit and put its squares back.

        Raises:
            ValueError: an unknown rule or output type, numbers of images and labels or sizes that do not fit.
        """
        numbers = self.numbers_of([] if labels is None else labels)
        if labels is None:
            # The unconditional class is what guidance leads away from, so there is nothing to guide to.
            numbers, options = [self.model.config.num_classes], {**options, "guidance_scale": 0.0}
        check_output_type(output_type)
        canvases, numbers = broadcast_lists(image=edit.canvases, labels=numbers)
        _check_one_size(canvases, output_type)
        request = Request.of(self.model, numbers, **options)
        copies = len(request.labels) // len(canvases)
        edit = replace(edit, canvases=[canvas for canvas in canvases for _ in range(copies)])
        batches = list(_sample_squares(self.model, self.vqvae, edit, request))
        if output_type == "latent":
            return PipelineOutput.of(batches, self.vqvae, output_type)
        images: list[Tensor] = []
        for batch in batches:
            for square in cast(Tensor, decode(self.vqvae, batch.f_hat, "pt")).cpu():
                images.append(edit.canvases[len(images)].restore(square, edit.paste, edit.feather))
        restored = _typed(images, output_type, self.model.device)
        return PipelineOutput(restored, batches, self.vqvae, output_type)


@dataclass(frozen=True)
class Edit:
    """Describe what to sample of which images.

    Attributes:
        canvases: The images, one per image of the call or one for all.
        rule: Name of the rule for kept cells; None samples every cell.
        own_scales: How many of the coarsest scales are the images' own.
        paste: Keep every pixel outside the mask as it was.
        feather: Width of the blend in pixels, see `Canvas.restore`.
    """

    canvases: list[Canvas]
    rule: str | None
    own_scales: int
    paste: bool
    feather: int | None

    def __post_init__(self) -> None:
        object.__setattr__(self, "feather", converted(self.feather, Pixels | None, "feather"))
        if self.rule is not None:
            check_rule(self.rule)


def _sample_squares(
    model: ScaleTransformer, vqvae: VQVAE, edit: Edit, request: Request
) -> Iterator[SampleResult]:
    """Sample the squares of an edit batch by batch."""
    quantizer, own, device = vqvae.quantizer, edit.own_scales, model.device
    count, resolution = len(model.config.sides), vqvae.config.resolution
    carries = model.new_state(torch.empty(0, dtype=torch.int64, device=device)).carries
    # A model that carries nothing starts at the first scale that is sampled.
    first = 0 if carries else own
    offset = (*model.pyramid.offsets, model.pyramid.length)[first]
    own_codes: list[Tensor] = []

    def prepare(images: slice) -> dict[str, Any]:
        squares = [canvas.square(resolution) for canvas in edit.canvases[images]]
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
        for start in range(0, len(edit.canvases), request.batch_size):
            f_hat = prepare(slice(start, start + request.batch_size))["f_hat"]
            yield SampleResult(own_codes[0], (f_hat,), None)
        return
    for batch in sample_batches(model, quantizer, request, scales=range(first, count), prepare=prepare):
        codes = torch.cat([own_codes[0][:, :offset], batch.indices], dim=1) if first else batch.indices
        yield replace(batch, indices=codes)


def _typed(images: Sequence[Tensor], output_type: str, device: torch.device) -> Images:
    """Return images (3, H, W) in [0, 1] in the type asked for."""
    if output_type == "pt":
        return torch.stack(list(images)).to(device)
    arrays = [(image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy() for image in images]
    return np.stack(arrays) if output_type == "np" else [Image.fromarray(array) for array in arrays]


def broadcast_lists(**lists: list[Any]) -> list[list[Any]]:
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


def own_scales(strength: float, num_scales: int) -> int:
    """Return how many of the coarsest scales are an image's own: floor((1 - strength) S).

    Raises:
        ValueError: `strength` is outside 0 .. 1.
    """
    strength = converted(strength, Share, "strength")
    return math.floor((1 - strength) * num_scales + _ROUNDING)


def _four(padding: int | Sequence[int]) -> tuple[int, int, int, int]:
    sides = converted(padding, Pixels | tuple[Pixels, Pixels, Pixels, Pixels], "padding")
    left, top, right, bottom = (sides,) * 4 if isinstance(sides, int) else sides
    return left, top, right, bottom
