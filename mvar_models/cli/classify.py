"""The command `mvar classify`."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image

from mvar_models.checkpoints.locate import FORMS
from mvar_models.cli.common import OutFile
from mvar_models.cli.drawing_options import accept_psnr_option
from mvar_models.data.class_names import renumbered
from mvar_models.evaluation.image_sets import ImageSet, SourceImages
from mvar_models.evaluation.likelihood import MARGIN, Posterior, evidence, evidence_map, posterior
from mvar_models.evaluation.open_sets import open_set
from mvar_models.evaluation.reconstruction import check_reconstruction
from mvar_models.files import file_stem, write_text
from mvar_models.networks.transformer import ScaleTransformer
from mvar_models.pipeline import pipeline_for
from mvar_models.sampling.progress import counting


@click.command()
@click.argument("data")
@click.option("--model", required=True, help=f"Model: {FORMS}.")
@click.option(
    "--prune/--no-prune",
    default=True,
    help="Drop classes that fall behind on the coarse scales, or compute all classes at all scales.",
)
@click.option(
    "--margin", default=MARGIN, help="With --prune: nats behind the best at which a class is dropped."
)
@click.option("--n", type=click.IntRange(min=1), default=None, help="The first N images only.")
@click.option("--batch-size", default=64, type=click.IntRange(min=1), help="Classes at a time.")
@click.option("--device", default=None, help="Default: cuda if available, else cpu.")
@click.option(
    "--json", "json_file", type=OutFile(".json"), default=None,
    help="Write accuracy, confusion and work to this file.",
)  # fmt: skip
@click.option(
    "--csv", "csv_file", type=OutFile(".csv"), default=None,
    help="Write a row per image to this file: classes, probabilities, the lead of the first at each scale.",
)  # fmt: skip
@click.option(
    "--explain", type=click.Path(path_type=Path, file_okay=False), default=None,
    help="Write a picture per image to this folder: red spoke for its class, blue against.",
)  # fmt: skip
@accept_psnr_option
def classify(
    data: str,
    model: str,
    prune: bool,
    margin: float,
    n: int | None,
    batch_size: int,
    device: str | None,
    json_file: Path | None,
    csv_file: Path | None,
    explain: Path | None,
    accept_psnr: bool,
) -> None:
    """Classify the images of DATA by how likely the model finds their codes for each class.

    DATA is as for `mvar evaluate`: a folder, an .npz or a dataset, whose parts are "digits@held-out" and
    "digits@train". Where its classes have names that the model knows, accuracy and confusion are computed.
    """
    pipeline = pipeline_for(model, device=device)
    network, vqvae = pipeline.model, pipeline.vqvae
    side = vqvae.config.resolution
    images = open_set(data, resolution=side)
    if images.size != (side, side):
        raise ValueError(
            f"{data} has images of {images.size[1]} x {images.size[0]} pixels, {model} needs {side}"
        )
    check_reconstruction(vqvae, images, Path("reconstruction.png"), name=model, accept=accept_psnr)
    names = network.config.class_names or tuple(map(str, range(network.config.num_classes)))
    total = min(len(images), n or len(images))
    truth = _truth(images, names)
    if explain is not None:
        explain.mkdir(parents=True, exist_ok=True)
    results: dict[int, Posterior] = {}
    with counting("classifying", total) as meter:
        for index in range(total):
            pixels, kept = images.read(np.array([index]))
            if len(kept):
                image = torch.from_numpy(pixels[0]).permute(2, 0, 1).float() / 127.5 - 1
                results[index] = posterior(
                    network, vqvae, image, margin=margin if prune else None, batch_size=batch_size
                )
                if explain is not None:
                    picture = _explained(pixels[0], network, vqvae, image, results[index].prediction)
                    picture.save(explain / f"{index:06}-{file_stem(names[results[index].prediction])}.png")
            meter.advance()
    if not results:
        raise ValueError(f"{data} has no image that can be read")
    summary = {
        "model": model,
        "data": data,
        "images": len(results),
        "classes": list(names),
        "margin": margin if prune else None,
        "work": float(np.mean([each.work for each in results.values()])),
        **_scores(results, truth, len(names)),
    }
    if csv_file is not None:
        write_text(csv_file, _table(results, truth, names, images))
    if json_file is not None:
        write_text(json_file, json.dumps(summary, indent=2) + "\n")
    known = "classes of the data are not the model's" if summary["accuracy"] is None else (
        f"accuracy {summary['accuracy']:.4f}"
    )  # fmt: skip
    click.echo(
        f"{len(results)} images: {known}; {summary['work']:.3f} of the tokens of all classes were computed"
    )


def _truth(images: ImageSet, names: Sequence[str]) -> np.ndarray | None:
    """Return the model's label of each image, -1 where it has none, or None where no class is known."""
    if images.labels is None:
        return None
    labels = renumbered(images.labels, images.class_names, names)
    return labels if (labels >= 0).any() else None


def _scores(results: dict[int, Posterior], truth: np.ndarray | None, count: int) -> dict[str, Any]:
    """Return accuracy and confusion, rows the true class and columns the predicted one, of known classes."""
    if truth is None:
        return {"accuracy": None, "confusion": None}
    confusion = np.zeros((count, count), dtype=np.int64)
    for index, each in results.items():
        if truth[index] >= 0:
            confusion[truth[index], each.prediction] += 1
    return {"accuracy": float(np.trace(confusion) / max(confusion.sum(), 1)), "confusion": confusion.tolist()}


def _table(
    results: dict[int, Posterior], truth: np.ndarray | None, names: Sequence[str], images: ImageSet
) -> str:
    scales = len(next(iter(results.values())).scale_log_likelihoods)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    leads = [f"lead_scale_{scale}" for scale in range(1, scales + 1)]
    writer.writerow(["image", "class", "predicted", "probability", "second", "log_likelihood", *leads])
    for index, each in results.items():
        # Of classes that were dropped the last to go is the second.
        order = each.scale_log_likelihoods.isnan().sum(0) * 1e12 - each.scale_log_likelihoods.nansum(0)
        first, second = each.prediction, int(order.argsort()[1]) if len(names) > 1 else each.prediction
        lead = each.scale_log_likelihoods[:, first] - each.scale_log_likelihoods[:, second]
        writer.writerow(
            [
                images.source.name(int(images.members[index])) if isinstance(images, SourceImages) else index,
                names[truth[index]] if truth is not None and truth[index] >= 0 else "",
                names[first],
                f"{each.probabilities[first]:.6g}",
                names[second],
                f"{each.log_likelihoods[first]:.6g}",
                *("" if value != value else f"{value:.5g}" for value in lead.tolist()),
            ]
        )
    return text.getvalue()


def _explained(
    pixels: np.ndarray, network: ScaleTransformer, vqvae: Any, image: torch.Tensor, label: int
) -> Image.Image:
    """Return the image beside itself in grey, with the evidence of every pixel in red or blue."""
    spread = evidence_map(evidence(network, vqvae, image, label), pixels.shape[0]).numpy()
    strength = np.abs(spread) / max(np.abs(spread).max(), 1e-12)
    grey = pixels.mean(2, keepdims=True).repeat(3, 2)
    colour = np.where(spread[..., None] > 0, [214.0, 39.0, 40.0], [31.0, 119.0, 180.0])
    blend = 0.8 * strength[..., None]
    shown = np.concatenate([pixels, np.rint(grey * (1 - blend) + colour * blend)], axis=1)
    return Image.fromarray(shown.astype(np.uint8))
