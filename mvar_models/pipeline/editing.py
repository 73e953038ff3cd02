"""In-painting, out-painting and variations: the methods of every pipeline that take an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, overload

import torch
from PIL import Image

from mvar_models.config import Share
from mvar_models.networks.transformer import ScaleTransformer
from mvar_models.networks.vqvae import VQVAE
from mvar_models.pipeline.canvas import Canvas, extended
from mvar_models.pipeline.edits import Edit, Pixels, alike, draw_edit, size_of
from mvar_models.pipeline.inputs import ImageInput, images_of, masks_of
from mvar_models.pipeline.loading import check_fit
from mvar_models.pipeline.options import CallOptions, Labels, as_sequence
from mvar_models.records import converted, within

if TYPE_CHECKING:
    from typing_extensions import Unpack

# What (1 - strength) S may lack of a whole number by rounding.
_ROUNDING = 1e-9


class EditOptions(CallOptions, total=False):
    """Arguments of `inpaint` and `outpaint` that do not decide the type of what they return."""

    strength: float
    paste: bool
    rule: str
    feather: int | None


class Editing:
    """The editing methods, which `Pipeline` inherits."""

    model: ScaleTransformer
    vqvae: VQVAE

    if TYPE_CHECKING:

        def label_of(self, label: int | str) -> int: ...

    @overload
    def inpaint(
        self,
        image: ImageInput,
        mask_image: ImageInput,
        labels: Labels | None = None,
        *,
        padding_mask_crop: int | None = None,
        output_type: Literal["pil"] = "pil",
        return_dict: Literal[False] = False,
        **options: Unpack[EditOptions],
    ) -> list[Image.Image]: ...

    @overload
    def inpaint(
        self,
        image: ImageInput,
        mask_image: ImageInput,
        labels: Labels | None = None,
        *,
        padding_mask_crop: int | None = None,
        output_type: str = "pil",
        return_dict: bool = False,
        **options: Unpack[EditOptions],
    ) -> Any: ...

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
        return_dict: bool = False,
        **options: Unpack[CallOptions],
    ) -> Any:
        """Redraw the white part of a mask.

        Args:
            image: A file's path, a PIL image, an array (H, W, 3), a tensor (3, H, W), or a list or batch of
                them, read as `mvar edit` reads files. Of any size: the model sees a square at its own
                resolution, which then goes back to its place.
            mask_image: White where the image is drawn, black where it stays; of the image's size. One mask
                serves all images.
            labels: Class of each image, or one for all; one image with several labels is drawn once per
                label. Default: the unconditional class, without guidance.
            strength: Share of the scales that are drawn, from 0 to 1; the coarsest floor((1 - strength) S) of
                the S scales are the image's own, so that its layout stays.
            paste: Keep every pixel outside the mask as it was. Otherwise the whole square comes from the
                VQVAE's decoder.
            rule: "closed" hides what is in the hole from the model; "released" is the rule of the released
                programs, whose codes know it. See `mvar_models.sampling.inpainting`.
            feather: Width of the blend along the edge of the mask, inside it, in pixels of the image.
                Default: 1/32 of the square's side.
            padding_mask_crop: Draw only a square around the mask with this many pixels of margin, which gives
                small masks in large images the model's whole resolution. Default: the whole image.
            output_type: As for the pipeline's call; "latent" is that of the square.
            return_dict: Return a `PipelineOutput`.
            options: As for the pipeline's call: seed, generator, guidance_scale, top_k, top_p, sampler, ...

        Returns:
            Images of the size of `image`, of the type that the pipeline's call returns.

        Raises:
            TypeError: images, masks or labels of another type.
            ValueError: shapes, sizes or numbers that do not fit, an unknown rule or output type.
        """
        padding_mask_crop = converted(padding_mask_crop, Pixels | None, "padding_mask_crop")
        pairs = list(zip(*alike(image=images_of(image), mask_image=masks_of(mask_image))))
        for pixels, mask in pairs:
            if pixels.shape[1:] != mask.shape:
                sizes = f"{size_of(pixels)}, got {size_of(mask)}"
                raise ValueError(f"mask_image must have the size of image, {sizes}")
        canvases = [Canvas.of(pixels, mask, padding_mask_crop) for pixels, mask in pairs]
        own = own_scales(strength, len(self.model.config.sides))
        edit = Edit(canvases, rule, own, paste, feather)
        return self._edited(edit, labels, output_type, return_dict, options)

    @overload
    def outpaint(
        self,
        image: ImageInput,
        padding: int | Sequence[int],
        labels: Labels | None = None,
        *,
        output_type: Literal["pil"] = "pil",
        return_dict: Literal[False] = False,
        **options: Unpack[EditOptions],
    ) -> list[Image.Image]: ...

    @overload
    def outpaint(
        self,
        image: ImageInput,
        padding: int | Sequence[int],
        labels: Labels | None = None,
        *,
        output_type: str = "pil",
        return_dict: bool = False,
        **options: Unpack[EditOptions],
    ) -> Any: ...

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
        return_dict: bool = False,
        **options: Unpack[CallOptions],
    ) -> Any:
        """Enlarge an image and draw what is new.

        Args:
            image: As for `inpaint`.
            padding: Pixels to add on every side, or on the left, at the top, on the right and at the bottom.
            labels: As for `inpaint`.
            strength: As for `inpaint`; an own coarse scale is one of the image with its edge repeated.
            paste: As for `inpaint`.
            rule: As for `inpaint`.
            feather: As for `inpaint`.
            output_type: As for the pipeline's call.
            return_dict: Return a `PipelineOutput`.
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
        return self._edited(edit, labels, output_type, return_dict, options)

    @overload
    def vary(
        self,
        image: ImageInput,
        from_scale: int,
        labels: Labels | None = None,
        *,
        output_type: Literal["pil"] = "pil",
        return_dict: Literal[False] = False,
        **options: Unpack[CallOptions],
    ) -> list[Image.Image]: ...

    @overload
    def vary(
        self,
        image: ImageInput,
        from_scale: int,
        labels: Labels | None = None,
        *,
        output_type: str = "pil",
        return_dict: bool = False,
        **options: Unpack[CallOptions],
    ) -> Any: ...

    def vary(
        self,
        image: ImageInput,
        from_scale: int,
        labels: Labels | None = None,
        *,
        output_type: str = "pil",
        return_dict: bool = False,
        **options: Unpack[CallOptions],
    ) -> Any:
        """Redraw the fine scales of an image.

        A model that is Markov over scales computes those scales alone; VAR computes the coarser ones too, for
        its cache.

        Args:
            image: As for `inpaint`.
            from_scale: First scale that is drawn, 0 for a fresh image; the number of scales gives the VQVAE's
                reconstruction.
            labels: As for `inpaint`.
            output_type: As for the pipeline's call.
            return_dict: Return a `PipelineOutput`.
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
        return self._edited(edit, labels, output_type, return_dict, options)

    def _edited(
        self, edit: Edit, labels: Labels | None, output_type: str, return_dict: bool, options: CallOptions
    ) -> Any:
        if labels is None:
            # The unconditional class is what guidance leads away from, so there is nothing to guide to.
            numbers, options = [self.model.config.num_classes], {**options, "guidance_scale": 0.0}
        else:
            numbers = [self.label_of(label) for label in as_sequence(labels)]
        check_fit(self.model, self.vqvae)
        output = draw_edit(self.model, self.vqvae, edit, numbers, output_type, options)
        return output if return_dict else output.images


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
