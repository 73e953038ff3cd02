"""The evaluation suite: whether figures of `mvar evaluate` move as they should, and the speed of features.

Real images are damaged in known ways and compared with other real images, by the same code as drawn ones:
blur, noise and JPEG artefacts of rising strength, classes left out, copies of training images. Without
weights of their own, Inception and DINOv2 are timed with random ones, which cost the same.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image, ImageFilter

from benchmarks.core import report
from benchmarks.core.measure import measure
from benchmarks.core.report import Record
from benchmarks.suites.settings import Settings, written
from mvar_models.evaluation.evaluator import evaluate, prepare_reference
from mvar_models.evaluation.features.dinov2 import vit_large
from mvar_models.evaluation.features.inception import InceptionV3, state_shapes
from mvar_models.evaluation.features.network import (
    FEATURES,
    FeatureNetwork,
    FeatureOutputs,
    feature_network,
)
from mvar_models.evaluation.open_sets import open_set

# The largest sets: reference, training set and every damaged set have as many images.
_IMAGES, _QUICK_IMAGES = 400, 60
_SIDE = 64
_MEMORISED = 20
_TIMED = 4
_DAMAGED = ("efficientnet-lite0", "pixels")


@dataclass(frozen=True)
class RealImages:
    """Disjoint sets of real images, of equal size where not said otherwise.

    Attributes:
        reference: (n, R, R, 3) uint8, what all are compared with.
        training: (n, R, R, 3) uint8, what a model might have memorised.
        others: (m, R, R, 3) uint8, the rest, at least twice as many.
        labels: (m,) their classes.
    """

    reference: np.ndarray
    training: np.ndarray
    others: np.ndarray
    labels: np.ndarray


def run(settings: Settings) -> list[str]:
    """Evaluate damaged images with two feature networks, and time all feature networks."""
    images = real_images(settings.data, _QUICK_IMAGES if settings.quick else _IMAGES)
    timings = timed(settings)
    records: list[Record] = []
    for name in _DAMAGED:
        network = Remembering(feature_network(name, device=settings.device))
        for record in judged(images, network):
            click.echo(f"{name}: {record['images']} ...", err=True)
            records.append({"features": name, **record})
    lines = [
        f"{len(images.reference):,} images of {settings.data} in every set, no image in two of them.",
        "",
        *table(records),
        "",
        f"Features of {_TIMED} images of {_SIDE} px at a time:",
        "",
        *speeds(timings),
    ]
    report.write(settings.out, "evaluation", settings.facts, records + timings, lines)
    return [*lines, "", written(settings.out, "evaluation", [])]


def real_images(data: str, most: int) -> RealImages:
    """Draw the sets at random from a dataset.

    Args:
        data: As for `--data` of training; images of a folder are cropped to 64 px.
        most: Largest number n of images per set; less where the two largest classes have fewer.
    """
    source = open_set(data, resolution=None if data == "digits" else _SIDE)
    if source.labels is None:
        raise ValueError(f"{data} must have classes, of which some can be left out")
    # So many are left of the two largest classes when reference and training set are taken.
    most = min(most, len(source) // 7)
    order = np.random.default_rng(0).permutation(len(source))
    found, kept = source.read(order)
    labels = source.labels[order[kept]]
    parts = found[:most], found[most : 2 * most], found[2 * most :]
    return RealImages(*parts, labels[2 * most :])


def damaged(images: RealImages) -> Iterator[tuple[str, np.ndarray]]:
    """Yield what is done to the images, and the n images."""
    count = len(images.reference)
    real = images.others[:count]
    rng = np.random.default_rng(1)
    yield "real", real
    yield "real, others", images.others[count : 2 * count]
    for radius in (1, 2):
        yield f"blurred, {radius} px", _blurred(real, radius)
    for deviation in (10, 20, 40):
        noisy = real + rng.normal(0, deviation, real.shape)
        yield f"noise of {deviation}", noisy.round().clip(0, 255).astype(np.uint8)
    for quality in (50, 10):
        yield f"JPEG, quality {quality}", _compressed(real, quality)
    classes, sizes = np.unique(images.labels, return_counts=True)
    for what, kept in (
        ("half of the classes", classes[::2]),
        ("the two largest classes", classes[np.argsort(-sizes, kind="stable")[:2]]),
    ):
        yield f"{what} only", images.others[np.flatnonzero(np.isin(images.labels, kept))[:count]]
    half = count // 2
    yield "half copies of training images", np.concatenate([real[:half], images.training[: count - half]])
    yield "copies of training images", images.training
    yield f"copies of {_MEMORISED} training images", np.resize(images.training[:_MEMORISED], real.shape)


def judged(images: RealImages, network: FeatureNetwork) -> Iterator[Record]:
    """Yield the figures of all damaged sets."""
    reference = prepare_reference(images.reference, network, training=images.training)
    for name, found in damaged(images):
        figures = evaluate(found, reference, per_class=False)
        kept = ("fd", "kid", "precision", "recall", "density", "coverage", "near_copies")
        yield {"images": name, "count": len(found), **{key: figures[key] for key in kept}}


class Remembering(FeatureNetwork):
    """A feature network that computes the features of equal images once.

    Args:
        network: The network.
    """

    def __init__(self, network: FeatureNetwork) -> None:
        super().__init__(network.device, network.dtype)
        self._network = network
        self.name, self.distance = network.name, network.distance
        self.dimension, self.weights = network.dimension, network.weights
        self._known: dict[bytes, torch.Tensor] = {}

    def _outputs(self, images: torch.Tensor) -> FeatureOutputs:
        keys = [image.numpy().tobytes() for image in images]
        new = {key: place for place, key in enumerate(keys) if key not in self._known}
        if new:
            features = self._network(images[list(new.values())]).features
            self._known.update(zip(new, features))
        return FeatureOutputs(torch.stack([self._known[key] for key in keys]))


def timed(settings: Settings) -> list[Record]:
    """Time every feature network; those without weights here get random ones."""
    images = torch.randint(0, 256, (_TIMED, _SIDE, _SIDE, 3), dtype=torch.uint8)
    records = []
    with tempfile.TemporaryDirectory() as folder:
        for name in FEATURES:
            network, random = _loaded(name, settings, Path(folder))
            run = {name: partial(network, images)}
            found = measure(run, settings.device, settings.seconds, least_calls=3)[name]
            records.append(
                {
                    "features": name,
                    "weights": "random" if random else "own",
                    "images per second": _TIMED / found.median,
                    **report.timing_columns(found, None),
                }
            )
    return records


def _loaded(name: str, settings: Settings, folder: Path) -> tuple[FeatureNetwork, bool]:
    """Load a network, with random weights if it needs a file of them; return whether they are random."""
    if name not in _SHAPES:
        return feature_network(name, device=settings.device), False
    file = folder / f"{name}.pth"
    torch.save({key: torch.rand(shape) / 10 for key, shape in _SHAPES[name]().items()}, file)
    network = feature_network(name, device=settings.device, weights=file)
    file.unlink()
    return network, True


def _inception_shapes() -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return state_shapes(InceptionV3())


def _dinov2_shapes() -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(values.shape) for name, values in vit_large().state_dict().items()}


_SHAPES = {"inception-tf": _inception_shapes, "dinov2": _dinov2_shapes}


def table(records: list[Record]) -> Iterator[str]:
    """Yield the Markdown table of damaged images."""
    titles = ["features", "compared", "FD", "KID x 1000", "precision", "recall", "density", "coverage"]
    yield from report.header([*titles, "near-copies"])
    for r in records:
        shares = [f"{r[name]:.3f}" for name in ("precision", "recall", "density", "coverage")]
        distances = [f"{r['fd']:.4g}", f"{r['kid'] * 1000:.4g}"]
        yield report.row([r["features"], r["images"], *distances, *shares, f"{r['near_copies']:.1%}"])


def speeds(records: list[Record]) -> Iterator[str]:
    """Yield the Markdown table of images per second."""
    yield from report.header(["features", "weights", "images per second", "median ms", "p20 .. p80"])
    for r in records:
        spread = f"{r['p20_ms']:.1f} .. {r['p80_ms']:.1f}"
        cells = [f"{r['images per second']:.1f}", f"{r['median_ms']:.1f}", spread]
        yield report.row([r["features"], r["weights"], *cells])


def _blurred(images: np.ndarray, radius: float) -> np.ndarray:
    blur = ImageFilter.GaussianBlur(radius)
    return np.stack([np.asarray(Image.fromarray(image).filter(blur)) for image in images])


def _compressed(images: np.ndarray, quality: int) -> np.ndarray:
    found = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "jpeg", quality=quality)
        found.append(np.asarray(Image.open(file).convert("RGB")))
    return np.stack(found)
