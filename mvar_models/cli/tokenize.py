"""The command `mvar tokenize`."""

from __future__ import annotations

import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from mvar_models.checkpoints.locate import FORMS
from mvar_models.cli.drawing_options import accept_psnr_option, seed_option
from mvar_models.data.class_names import counted
from mvar_models.data.open import check_data_exists, open_images
from mvar_models.distributed import Processes
from mvar_models.environment import versions
from mvar_models.evaluation.reconstruction import check_reconstruction
from mvar_models.networks.vqvae import VQVAE
from mvar_models.pipeline import RELEASED_SIDES, fitted
from mvar_models.pipeline.identity import network_identity
from mvar_models.tokens.folder import INDEX, TokenFolder, refuse_tokens, verify_tokens
from mvar_models.tokens.writer import TokenWriter, Written
from mvar_models.training.build import default_vqvae

_LISTED = 10


@click.command()
@click.option(
    "--data",
    default=None,
    help="Images: 'digits', a folder, a .parquet file, or a Hugging Face dataset as org/name[:split].",
)
@click.option(
    "--vqvae",
    default=None,
    help=f"VQVAE: {FORMS}. Default: vae-digits for digits, else vae-ch160v4096z32.",
)
@click.option(
    "--resolution",
    type=int,
    default=None,
    help="256, 512 or 1024 px, all of which the released VQVAE serves. Default: the VQVAE's own.",
)
@click.option(
    "--out",
    "-o",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder to create or to finish.",
)
@click.option(
    "--copies",
    type=int,
    default=None,
    help="Variants per image. Default: 2, the image and its mirror; 1 for digits.",
)
@seed_option("Seed of the variants that are not mirrors.")
@click.option("--shard-size", default=2048, help="Images per file.")
@click.option(
    "--batch-size",
    type=int,
    default=None,
    help="Images encoded at a time. Default: 64, or fewer above 256 px.",
)
@click.option("--device", default=None, help="Default: cuda if available, else cpu.")
@accept_psnr_option
@click.option("--verify", is_flag=True, help="Check the checksums of a finished folder; takes --out alone.")
def tokenize(
    data: str | None,
    out: Path,
    verify: bool,
    batch_size: int | None,
    device: str | None,
    accept_psnr: bool,
    **options: Any,
) -> None:
    """Encode all images and their mirrors once; training then takes the folder as its --data.

    A stopped run continues where it was when started again. Under torchrun, or as several processes with RANK
    and WORLD_SIZE set, the processes share the work; the files are the same.
    """
    if verify:
        if data is not None:
            raise click.UsageError("--verify checks what is in --out; leave out --data")
        click.echo(f"{verify_tokens(out)} shards in {out} have the checksums of the index")
        return
    if data is None:
        raise click.UsageError("--data is missing")
    processes = Processes.from_environment(device)
    # Processes that RANK and WORLD_SIZE alone tell apart share nothing but the folder.
    meeting = not processes.alone and "MASTER_ADDR" in os.environ
    if meeting:
        processes.connect()
    with processes.raising_together() if meeting else nullcontext():
        refuse_tokens(data)
        check_data_exists(data)
        vqvae = options.pop("vqvae") or default_vqvae(data)
        model = _load_vqvae(vqvae, options.pop("resolution"), str(processes.device))
        source = open_images(data, model.config.resolution)
    if meeting:
        contents = {"data": source.fingerprint, "vqvae": network_identity(model)}
        processes.require_same({**options, **contents, "batch_size": batch_size, **versions()})
        processes.close()
    num_variants = options.pop("copies")
    if processes.first:
        click.echo(f"{len(source):,} images in {counted(source.class_names)}")
    found, image = None, out / "reconstruction.png"
    if not (out / INDEX).exists():
        # In each process, since some share nothing but the folder, and before the folder has settings.
        found = check_reconstruction(model, source, image, name=vqvae, accept=accept_psnr)
    writer = TokenWriter(model, source, out, names=(data, vqvae), num_variants=num_variants, **options)
    if processes.first and found is not None:
        found.save(image)
        click.echo(f"{vqvae} reconstructs these images with {found.psnr:.1f} dB PSNR; {image}")
    written = _write(writer, processes, batch_size)
    if written.complete:
        _show_result(TokenFolder(out))
    else:
        click.echo(
            f"process {processes.rank} is done; the index appears when all {processes.world_size} are "
            "(or when the command is run again)"
        )


def _load_vqvae(name: str, resolution: int | None, device: str) -> VQVAE:
    """Load a VQVAE; a released one also at another of the released resolutions."""
    model = VQVAE.from_pretrained(name, device=device)
    if resolution is None or resolution == model.config.resolution:
        return model
    if resolution not in RELEASED_SIDES or model.config.sides not in RELEASED_SIDES.values():
        raise ValueError(
            f"{name} is for {model.config.resolution} px; "
            "--resolution is for the released VQVAE and 256, 512 or 1024 px"
        )
    return fitted(model, RELEASED_SIDES[resolution])


def _write(writer: TokenWriter, processes: Processes, batch_size: int | None) -> Written:
    start = time.perf_counter()
    written = writer.write(processes, batch_size=batch_size)
    seconds = time.perf_counter() - start
    if written.made:
        rate = f"{written.made / seconds:,.1f} images/s"
        click.echo(f"process {processes.rank}: {written.made:,} images in {seconds:.1f} s, {rate}")
    return written


def _show_result(folder: TokenFolder) -> None:
    variants, codes = folder.num_variants, sum(side**2 for side in folder.index.sides)
    click.echo(
        f"{len(folder):,} images, {variants} variant{'s' if variants > 1 else ''} each, "
        f"{codes} codes per variant, {folder.bytes_per_image:,.0f} bytes per image "
        f"in {len(folder.files)} shard{'s' if len(folder.files) > 1 else ''} of {folder.folder}"
    )
    if folder.skipped:
        click.echo(f"{len(folder.skipped)} skipped, all listed in index.json:")
        for name, reason in list(folder.skipped.items())[:_LISTED]:
            click.echo(f"  {name} {reason}")
