"""The command `mvar evaluate`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import torch

from mvar_models.checkpoints.locate import FORMS
from mvar_models.cli.common import CommaList, OutFile, require_same_options
from mvar_models.cli.drawing_options import accept_psnr_option, sampling_options, seed_option
from mvar_models.data.open import open_images
from mvar_models.distributed import Processes
from mvar_models.evaluation.comparison import METRICS
from mvar_models.evaluation.evaluator import evaluate, prepare_reference
from mvar_models.evaluation.features.network import DEFAULT_FEATURES, FEATURES, feature_network
from mvar_models.evaluation.likelihood import held_out_likelihood
from mvar_models.evaluation.open_sets import open_set, resolve_sets
from mvar_models.evaluation.report import table
from mvar_models.evaluation.statistics_file import has_statistics
from mvar_models.files import write_text

F = TypeVar("F", bound=Callable[..., Any])


def feature_options(command: F) -> F:
    """Add the options that say which feature network compares images."""
    command = click.option(
        "--weights",
        default=None,
        help="File of the feature network's weights, or 'download', where it needs one.",
    )(command)
    return click.option(
        "--features",
        type=click.Choice(list(FEATURES)),
        default=DEFAULT_FEATURES,
        help="Feature network; only the distance of inception-tf is an FID.",
    )(command)


@click.command("evaluate")
@click.argument("drawn", nargs=-1)
@click.option(
    "--reference",
    required=True,
    help="What to compare with: as DRAWN, or an .npz of statistics.",
)
@feature_options
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    help="Type that features are computed in, not of a model's weights. Published figures are of float32.",
)
@click.option(
    "--metrics",
    type=CommaList(str),
    default=None,
    help=f"Some of {','.join(METRICS)}. Default: all that images and features allow.",
)
@click.option("--training", default=None, help="Where to look for near-copies. Default: the reference.")
@click.option("--model", "models", multiple=True, help=f"Also draw with this one: {FORMS}; may be repeated.")
@click.option(
    "--per-class", type=click.IntRange(min=1), default=None, help="With --model: images of every class."
)
@seed_option("With --model: image i takes seed + i.")
@sampling_options
@click.option(
    "--reconstruct",
    default=None,
    metavar="VQVAE",
    help=f"Also evaluate each DRAWN as this VQVAE reconstructs it: {FORMS}.",
)
@click.option(
    "--held-out",
    default=None,
    metavar="DATA",
    help="With --model: likelihood of this dataset's held-out images.",
)
@accept_psnr_option
@click.option(
    "--resolution",
    type=click.IntRange(min=1),
    default=None,
    help="Side that datasets and folders are resized and cropped to. Default: that of what is drawn.",
)
@click.option(
    "--by-class/--no-by-class", default=None, help="Figures of each class. Default: where classes are known."
)
@click.option(
    "--bootstrap", default=0, type=click.IntRange(min=0), help="Resamples for intervals; 0 is none."
)
@click.option(
    "--float16-distances", is_flag=True, help="Round neighbours' distances as OpenAI's evaluator does."
)
@click.option("--device", default=None, help="Default: cuda if available, else cpu.")
@click.option("--batch-size", default=32, type=click.IntRange(min=1), help="Images at a time.")
@click.option(
    "--json",
    "json_file",
    type=OutFile(".json"),
    default=None,
    help="Write all figures to this file.",
)
@click.option(
    "--save-statistics",
    type=OutFile(".npz"),
    default=None,
    help="Write the reference's statistics to this .npz, which --reference then takes.",
)
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Folder for neighbours.png, classes.png and the images of --model. Default: none are written.",
)
def evaluate_command(
    drawn: tuple[str, ...],
    reference: str,
    features: str,
    weights: str | None,
    dtype: str,
    metrics: tuple[str, ...] | None,
    training: str | None,
    models: tuple[str, ...],
    per_class: int | None,
    seed: int,
    reconstruct: str | None,
    held_out: str | None,
    accept_psnr: bool,
    resolution: int | None,
    by_class: bool | None,
    bootstrap: int,
    float16_distances: bool,
    device: str | None,
    batch_size: int,
    json_file: Path | None,
    save_statistics: Path | None,
    out: Path | None,
    **options: Any,
) -> None:
    """Compare drawn images with a reference: Frechet distance, precision, recall and more, in one table.

    DRAWN is an .npz with images, a folder of images, or a dataset as for --data, whose parts are
    "digits@train" and "digits@held-out"; several make several rows. --model draws its own --per-class images
    first, in parts, so that a stopped command continues. Under torchrun the processes share the work; the
    figures are the same.
    """
    if not drawn and not models:
        raise click.UsageError("what is to be evaluated? Name DRAWN, or --model with --per-class")
    if bool(models) != (per_class is not None):
        raise click.UsageError("--model and --per-class go together")
    if reconstruct is not None and not drawn:
        raise click.UsageError("--reconstruct needs DRAWN images to reconstruct")
    if held_out is not None and not models:
        raise click.UsageError("--held-out is for --model: images have no likelihood without one")
    source = None if held_out is None else open_images(held_out)
    if models and out is None:
        raise click.UsageError("--model draws its images into --out, which is missing")
    processes = Processes.from_environment(device).connect()
    try:
        require_same_options(processes)
        if out is not None and models:  # each process samples its share into `out`
            processes.require_shared(out)
        place = processes.device
        network = feature_network(features, device=place, dtype=getattr(torch, dtype), weights=weights)
        if models and not has_statistics(reference):
            # A missing reference should be known before hours of sampling; the side does not matter yet.
            processes.first_then_others(lambda: open_set(reference, resolution=resolution or 1))
        sets = resolve_sets(
            drawn, models, per_class=per_class or 0, seed=seed, options=options, reconstruct=reconstruct,
            resolution=resolution, out=out, processes=processes, held_out=source, accept_psnr=accept_psnr,
        )  # fmt: skip
        results = []
        shared: dict[str, Any] = {
            "metrics": metrics, "per_class": by_class, "batch_size": batch_size, "processes": processes,
        }  # fmt: skip
        side = resolution or sets[0].images.size[0]
        prepared = prepare_reference(reference, network, training=training, resolution=side, **shared)
        for each in sets:
            results.append(
                evaluate(
                    each.images, prepared, bootstrap=bootstrap, half_distances=float16_distances,
                    device=place, statistics=save_statistics,
                    images_to=out / each.folder if out is not None and len(sets) > 1 else out, **shared,
                )
            )  # fmt: skip
            if source is not None and each.pipeline is not None:
                vqvae = each.pipeline.vqvae
                results[-1]["likelihood"] = held_out_likelihood(
                    each.pipeline.model, vqvae, source.at(vqvae.config.resolution),
                    batch_size=batch_size, processes=processes,
                )  # fmt: skip
        processes.run_on_rank0(lambda: _show(results, json_file))
    finally:
        processes.close()


def _show(results: list[dict[str, Any]], json_file: Path | None) -> None:
    for line in table(results):
        click.echo(line)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        content = results[0] if len(results) == 1 else {"sets": results}
        write_text(json_file, json.dumps(content, indent=2) + "\n")
