"""The command `mvar tokenize`."""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import click

from mvar_models.cli.common import clear_errors
from mvar_models.devices import default_device

_LISTED = 10


@click.command()
@click.option(
    "--data",
    default=None,
    help="Pictures: 'digits', a folder, a .parquet file, or a Hugging Face dataset as org/name[:split].",
)
@click.option(
    "--vqvae",
    default=None,
    help="Zoo name, folder, file or Hub id. Default: vae-digits for digits, else vae-ch160v4096z32.",
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
    help="Folder to make or to finish.",
)
@click.option(
    "--copies",
    type=int,
    default=None,
    help="Variants of each picture. Default: 2, it and its mirror; 1 for digits.",
)
@click.option("--seed", default=0, help="Of variants that are not mirrors.")
@click.option("--shard-size", default=2048, help="Pictures a file.")
@click.option(
    "--batch-size",
    type=int,
    default=None,
    help="Pictures encoded at a time. Default: 64, or fewer of more than 256 px.",
)
@click.option("--device", default=None, help="Default: cuda where there is one.")
@click.option("--verify", is_flag=True, help="Check the checksums of a finished folder; takes --out alone.")
@clear_errors
def tokenize(data: str | None, out: Path, verify: bool, **options: Any) -> None:
    """Make the codes of all pictures, and of their mirrors, once; training then takes the folder as its --data.

    A stopped run goes on where it was when started again. Under torchrun, or as many processes with RANK and WORLD_SIZE set, the processes
    share the work; the files are the same.
    """
    from mvar_models.tokens import folder as token_cache

    if verify:
        if data is not None:
            raise click.UsageError("--verify checks what is in --out; leave out --data")
        click.echo(f"{token_cache.verify_tokens(out)} shards in {out} have the checksums of the index")
        return
    if data is None:
        raise click.UsageError("--data is missing")
    _make(data, out, **options)


def _make(
    data: str, out: Path, vqvae: str | None, resolution: int | None, device: str | None, **options: Any
) -> None:
    from mvar_models.data.source import check_data_exists, open_source
    from mvar_models.networks.vqvae import VQVAE
    from mvar_models.optional import require
    from mvar_models.pipeline import RELEASED_SIDES, fitted
    from mvar_models.tokens import folder as token_cache
    from mvar_models.tokens import writer as token_writer
    from mvar_models.training.runs import default_vqvae

    check_data_exists(data)
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = device or default_device()
    if device == "cuda" and world_size > 1:
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    vqvae = vqvae or default_vqvae(data)
    model = VQVAE.from_pretrained(vqvae, device=device)
    if resolution is not None and resolution != model.config.resolution:
        if resolution not in RELEASED_SIDES or model.config.sides not in RELEASED_SIDES.values():
            raise ValueError(
                f"{vqvae} is for {model.config.resolution} px; --resolution is for the released VQVAE and 256, 512 or 1024 px"
            )
        model = fitted(model, RELEASED_SIDES[resolution])
    source = open_source(data, model.config.resolution)
    if isinstance(source, token_cache.TokenFolder):
        raise ValueError(f"{data} holds codes already, not pictures")
    given = {name: options.pop(name) for name in ("copies", "seed", "shard_size")}
    writer = token_writer.TokenWriter(model, source, out, names=(data, vqvae), **given)
    if rank == 0 and not writer.finished:
        click.echo(f"{len(source):,} pictures in {len(source.class_names)} classes")
        _tell_fit(writer.check_reconstruction(), vqvae, out)
    bar = require("tqdm", "train").tqdm(
        unit="picture", dynamic_ncols=True, disable=rank > 0 or not sys.stderr.isatty()
    )

    def report(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    begun = time.perf_counter()
    with bar:
        written = writer.write(rank=rank, world_size=world_size, report=report, **options)
    seconds = time.perf_counter() - begun
    if written.made:
        rate = written.made / seconds
        click.echo(f"process {rank}: {written.made:,} pictures in {seconds:.1f} s, {rate:,.1f} pictures/s")
    if not written.complete:
        click.echo(
            f"process {rank} is done; the index appears when all {world_size} are (or when the command is run again)"
        )
        return
    _tell_result(token_cache.TokenFolder(out))


def _tell_fit(found: Any, vqvae: str, out: Path) -> None:
    picture = out / "reconstruction.png"
    click.echo(
        f"{vqvae} gives these pictures back with {found.psnr:.1f} dB PSNR (their mean colours: {found.flat:.1f}); {picture}"
    )
    if not found.fits:
        logging.getLogger(__name__).warning(
            "%s does not fit these pictures; look at %s, and train one with `mvar train-vqvae`",
            vqvae,
            picture,
        )


def _tell_result(folder: Any) -> None:
    copies, codes = folder.copies, sum(side**2 for side in folder.index["sides"])
    click.echo(
        f"{len(folder):,} pictures, {copies} variant{'s' if copies > 1 else ''} each, {codes} codes a variant, "
        f"{folder.bytes_per_picture:,.0f} bytes a picture in {len(folder.files)} shards of {folder.folder}"
    )
    if folder.left_out:
        click.echo(f"{len(folder.left_out)} left out, all listed in index.json:")
        for name, reason in list(folder.left_out.items())[:_LISTED]:
            click.echo(f"  {name} {reason}")
