"""The command `mvar edit`: in-painting, out-painting and variations of an image in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import torch

from mvar_models.cli.common import CommaList, OutFile
from mvar_models.cli.drawing_options import (
    accept_psnr_option,
    checkpoint_options,
    chosen_labels,
    filter_options,
    load_pipeline,
    seed_option,
)
from mvar_models.evaluation.reconstruction import check_reconstruction
from mvar_models.files import replacing
from mvar_models.pipeline.canvas import Canvas
from mvar_models.pipeline.inputs import images_of, masks_of
from mvar_models.sampling.inpainting import RULES
from mvar_models.sampling.progress import SAMPLING, counting

# What each kind of edit takes besides the options of all.
_ONLY_FOR = {
    "mask_image": ("strength", "rule", "paste", "feather", "padding_mask_crop"),
    "padding": ("strength", "rule", "paste", "feather"),
    "from_scale": (),
}


@click.command()
@click.option(
    "--image", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The image to edit."
)
@click.option(
    "--mask-image",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="In-paint: draw the white part of this mask, which has the image's size.",
)
@click.option(
    "--padding",
    type=CommaList(int, be="one number, or left,top,right,bottom", counts=(1, 4)),
    default=None,
    help="Out-paint: add this many pixels on every side, or as left,top,right,bottom.",
)
@click.option(
    "--from-scale",
    type=click.IntRange(min=0),
    default=None,
    help="Vary: keep the scales before this one, and draw the others.",
)
@click.option(
    "--labels",
    default=None,
    help="Class numbers or names, separated by commas; one image each. Default: the unconditional class.",
)
@click.option("--n", default=1, type=click.IntRange(min=1), help="Images per label.")
@seed_option("Image i takes seed + i.")
@click.option(
    "--strength", type=float, default=1.0, help="Share of the scales drawn; coarser ones are the image's own."
)
@click.option(
    "--rule", type=click.Choice(list(RULES)), default="closed", help="How the part that is kept is coded."
)
@click.option(
    "--paste/--no-paste", default=True, help="Keep every pixel outside the mask, or take the decoder's."
)
@click.option(
    "--feather", type=int, default=None, help="Pixels of blend inside the mask. Default: side / 32."
)
@click.option(
    "--padding-mask-crop",
    type=int,
    default=None,
    help="Draw only a square around the mask with this margin. Default: the whole image.",
)
@accept_psnr_option
@filter_options
@checkpoint_options
@click.option(
    "--out",
    "-o",
    default="edited.png",
    type=OutFile(".png", ".jpg", ".jpeg", ".webp"),
    help="File to write; several images are numbered.",
)
@click.pass_context
def edit(
    context: click.Context,
    image: Path,
    labels: str | None,
    n: int,
    seed: int,
    model: str | None,
    vqvae: str | None,
    arch: str | None,
    dtype: str,
    device: str | None,
    preset: Path | None,
    out: Path,
    accept_psnr: bool,
    **given: Any,
) -> None:
    """Edit an image: in-paint with --mask-image, out-paint with --padding, or vary with --from-scale."""
    kind = _kind_of(context, given)
    if model is None:
        raise click.UsageError("--model is missing: what should draw?")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out.parent} is no folder")
    pixels = images_of(image)
    target = masks_of(given[kind]) if kind == "mask_image" else given[kind]
    if kind == "padding" and len(target) == 1:
        (target,) = target
    pipeline = load_pipeline(model, arch=arch, vqvae=vqvae, dtype=dtype, device=device, preset=preset)
    square, _ = Canvas.of(pixels[0], torch.ones(pixels[0].shape[1:], dtype=torch.bool, device="cpu")).square(
        pipeline.vqvae.config.resolution
    )
    shown = out.with_name(f"{out.stem}-reconstruction.png")
    check_reconstruction(pipeline.vqvae, square[None], shown, name=vqvae or model, accept=accept_psnr)
    # What belongs to no kind of edit is a setting of sampling.
    kinds = {*_ONLY_FOR, *(name for names in _ONLY_FOR.values() for name in names)} - {*_ONLY_FOR[kind]}
    options = {name: value for name, value in given.items() if name not in kinds}
    chosen = chosen_labels(labels, pipeline)
    methods: dict[str, Any] = {
        "mask_image": pipeline.inpaint,
        "padding": pipeline.outpaint,
        "from_scale": pipeline.vary,
    }
    with counting(SAMPLING, len(chosen or [0]) * n):
        images = methods[kind](pixels, target, chosen, seed=seed, num_images_per_label=n, **options)
    files = [out] if len(images) == 1 else [_numbered(out, index) for index in range(len(images))]
    for drawn, file in zip(images, files):
        with replacing(file) as temporary:
            drawn.save(temporary)
    click.echo(f"{files[0]}" if len(files) == 1 else f"{len(files)} images, {files[0]} to {files[-1]}")


def _kind_of(context: click.Context, given: dict[str, Any]) -> str:
    """Return the option that says what kind of edit this is, and refuse those of other kinds."""
    kinds = [name for name in _ONLY_FOR if given[name] is not None]
    if len(kinds) != 1:
        raise click.UsageError("give one of --mask-image, --padding and --from-scale")
    command_line = click.core.ParameterSource.COMMANDLINE
    known = {name for names in _ONLY_FOR.values() for name in names}
    extra = sorted(
        "--" + name.replace("_", "-")
        for name in known - set(_ONLY_FOR[kinds[0]])
        if context.get_parameter_source(name) is command_line
    )
    if extra:
        flag = "--" + kinds[0].replace("_", "-")
        raise click.UsageError(f"{flag} does not go with {', '.join(extra)}; leave them out")
    return kinds[0]


def _numbered(path: Path, index: int) -> Path:
    return path.with_name(f"{path.stem}_{index:03d}{path.suffix}")
