"""`evaluate`: the field's protocol in one call."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mvar_models.devices import checked_device
from mvar_models.distributed import Processes
from mvar_models.environment import environment
from mvar_models.evaluation.comparison import (
    FROM_STATISTICS,
    METRICS,
    OF_CLASSES,
    Comparison,
    Unavailable,
    bootstrap_intervals,
    by_class,
    metric,
)
from mvar_models.evaluation.features.network import (
    DEFAULT_FEATURES,
    FeatureNetwork,
    feature_network,
)
from mvar_models.evaluation.image_sets import ImageSet
from mvar_models.evaluation.nearest import Nearest, NearestTraining, leave_one_out
from mvar_models.evaluation.open_sets import open_set
from mvar_models.evaluation.report import write_images
from mvar_models.evaluation.scores import FrechetReference, rank_warning
from mvar_models.evaluation.statistics_file import has_statistics, read_statistics, save_statistics
from mvar_models.evaluation.summary import Summary, features_of, summarize

logger = logging.getLogger(__name__)

# Images, or a name of some, as `open_set` takes them.
Place = Any


@dataclass
class Reference:
    """A reference that is ready to be compared with any number of drawn sets.

    Attributes:
        network: The feature network.
        training: The training set to look for copies in, if it is not the reference itself.
        _summary: What `summarize` returned: None on all ranks but 0.
    """

    network: FeatureNetwork
    training: ImageSet | None
    _summary: Summary | None
    _warned: set[str] = field(default_factory=set)

    @property
    def summary(self) -> Summary:
        """The features of the reference's images; on rank 0 alone."""
        assert self._summary is not None, "rank 0 has the summaries"
        return self._summary

    @cached_property
    def frechet(self) -> FrechetReference:
        """The covariance with its root; on rank 0 alone."""
        try:
            return FrechetReference(self.summary.moments)
        except ValueError as error:
            raise ValueError(f"{self.summary.name}: {error}") from None

    def check_size(self, images: ImageSet) -> None:
        """Raise ValueError if images to compare have another size; on rank 0 alone."""
        expected = [("the reference", self.summary.name, self.summary.size)]
        if self.training is not None:
            expected.append(("the training set", self.training.name, self.training.size))
        for what, name, size in expected:
            if size is not None and tuple(size) != tuple(images.size):
                (height, width), (first, second) = size, images.size
                raise ValueError(
                    f"{images.name} has images of {second} x {first} pixels, {what} {name} of {width} x "
                    f"{height}: a resize of one would decide the distance"
                )

    def warn(self, warnings: Sequence[str]) -> None:
        """Log what has not been logged of an earlier set, such as that the reference has few images."""
        for warning in warnings:
            if warning not in self._warned:
                self._warned.add(warning)
                logger.warning("%s", warning)


def evaluate(
    drawn: Place,
    reference: Place | Reference,
    *,
    features: str | FeatureNetwork | None = None,
    metrics: Sequence[str] | None = None,
    training: Place | None = None,
    labels: np.ndarray | None = None,
    resolution: int | None = None,
    per_class: bool | None = None,
    bootstrap: int = 0,
    half_distances: bool = False,
    device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
    batch_size: int = 32,
    weights: str | os.PathLike[str] | None = None,
    statistics: str | os.PathLike[str] | None = None,
    images_to: str | os.PathLike[str] | None = None,
    processes: Processes | None = None,
) -> dict[str, Any]:
    """Compare drawn images with a reference.

    Args:
        drawn: Images as a pipeline returns them, an array (N, H, W, 3) of uint8, an .npz, a folder, a dataset
            as for `--data` (its parts as "digits@train" and "digits@held-out"), or an `ImageSet`; see
            `open_set`.
        reference: The same, or an .npz of statistics, or a `Reference` of `prepare_reference`.
        features: Name of a feature network, see `FEATURES`, or the network itself. Default: that of a
            prepared reference, else "efficientnet-lite0".
        metrics: Names in `METRICS`. Default: all that images and features allow.
        training: Where to look for copies. Default: the reference, or what it was prepared with.
        labels: (N,) classes of the drawn images, where the set itself does not know them.
        resolution: Side that datasets and folders are resized and cropped to. Default: the drawn images' own.
        per_class: Also return figures of each class. Default: where the classes of both sets are known.
        bootstrap: Resamples of the drawn images for intervals; 0 is none.
        half_distances: Distances of precision, recall, density and coverage in float16, as in OpenAI's
            evaluator, whose published figures carry its rounding.
        device: Where features and distances are computed; a ready network stays where it is. Default: the
            CPU.
        dtype: Type that features are computed in. Default: float32, as published figures are.
        batch_size: Images at a time.
        weights: File of the network's weights, for networks that need one.
        statistics: .npz to write the reference's statistics to, which is then a `reference` itself.
        images_to: Folder for neighbours.png, drawn images above the training images nearest to them, and
            classes.png, the worst and the best classes.
        processes: Those that share the work, each of which makes this call.

    Returns:
        Figures by name: `fd`, `sfd`, `is`, `precision`, `recall`, `density`, `coverage`, `kid`,
        `near_copies`, `label_agreement`, `class_diversity`, None where they could not be computed, with
        the reason in `left_out`; `features`, `counts`, `versions`, and all else that decides them. The same
        in all processes.

    Raises:
        ValueError: wrong arguments, images that cannot be compared, a metric that was asked for by name and
            cannot be computed, or arguments that a ready network or reference contradicts.
    """
    processes, place = processes or Processes(), checked_device(device)
    names = check_metrics(metrics)
    if bootstrap < 0:
        raise ValueError(f"bootstrap must be 0 or more, got {bootstrap}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    images = open_set(drawn, resolution=resolution, name="drawn")
    if labels is not None:
        images = _relabelled(images, labels)
    shared: dict[str, Any] = {"batch_size": batch_size, "processes": processes}
    if isinstance(reference, Reference):
        if training is not None and training is not reference.training:
            raise ValueError("training: the reference was prepared with its own training set; leave it out")
        reference.network.check_agrees(features, dtype, weights, "the reference was prepared")
    else:
        if features is None or isinstance(features, str):
            name = features or DEFAULT_FEATURES
            features = feature_network(name, device=place, dtype=dtype or torch.float32, weights=weights)
        else:
            features.check_agrees(None, dtype, weights, "features were given")
        side = resolution or images.size[0]
        reference = prepare_reference(
            reference, features, metrics=metrics, per_class=per_class, training=training, resolution=side,
            **shared,
        )  # fmt: skip
    ready: Reference = reference
    processes.run_on_rank0(lambda: ready.check_size(images))
    if statistics is not None:
        processes.run_on_rank0(lambda: save_statistics(ready.summary, statistics))
    keep = _needs_features(names, per_class) or bootstrap > 0
    summary = summarize(images, ready.network, keep=keep, **shared)
    # Metal has no float64, which distances are computed in.
    place = torch.device("cpu") if place.type == "mps" else place
    nearest = _search_training(summary, ready, place, **shared) if "near_copies" in names else None

    def compare() -> dict[str, Any]:
        assert summary is not None, "rank 0 has the summaries"
        known = nearest or (_leave_one_out(summary, ready, place) if "near_copies" in names else None)
        comparison = Comparison(
            summary, ready.summary, training=known, device=place, half=half_distances, frechet=ready.frechet
        )
        results = _figures(comparison, names, strict=metrics is not None)
        ready.warn(results["warnings"])
        results |= _inputs(comparison, ready.network)
        if per_class is not False:
            results |= by_class(comparison, strict=per_class is True)
        if bootstrap:
            results["intervals"] = bootstrap_intervals(comparison, bootstrap)
        if images_to is not None:
            write_images(comparison, results, ready.training, Path(images_to))
        return results

    return processes.run_on_rank0(compare)


def prepare_reference(
    reference: Place,
    network: FeatureNetwork,
    *,
    metrics: Sequence[str] | None = None,
    per_class: bool | None = None,
    training: Place | None = None,
    resolution: int | None = None,
    batch_size: int = 32,
    processes: Processes | None = None,
) -> Reference:
    """Compute the reference's part of `evaluate`, for comparison with several drawn sets.

    Features are kept where the metrics or figures of each class that will be asked for need them. The other
    arguments are those of `evaluate`.
    """
    keep = _needs_features(check_metrics(metrics), per_class)
    summary, images = None, None
    if has_statistics(reference):
        summary, images = read_statistics(reference, network)
    else:
        images = open_set(reference, resolution=resolution, name="reference")
    if images is not None and (summary is None or (keep and summary.features is None)):
        computed = summarize(images, network, batch_size=batch_size, keep=keep, processes=processes)
        if summary is not None and computed is not None:
            # Ready statistics are of all the reference's images, of which the file holds some.
            computed.moments, computed.spatial, computed.count = (
                summary.moments,
                summary.spatial,
                summary.count,
            )
        summary = computed
    others = None if training is None else open_set(training, resolution=resolution, name="training")
    return Reference(network, others, summary)


def check_metrics(metrics: Sequence[str] | None) -> tuple[str, ...]:
    """Return the metrics to compute; ValueError for an unknown one."""
    for name in metrics or ():
        if name not in METRICS:
            raise ValueError(f"metrics: {name!r} does not compare sets; those that do: {', '.join(METRICS)}")
    return tuple(METRICS if metrics is None else metrics)


def _needs_features(names: Sequence[str], per_class: bool | None) -> bool:
    return bool(set(names) - FROM_STATISTICS) or bool(per_class)


def _relabelled(images: ImageSet, labels: np.ndarray) -> ImageSet:
    """Return a copy with these classes, which need not have the set's names."""
    if len(labels) != len(images):
        raise ValueError(f"labels must be one per image, got {len(labels)} for {len(images)}")
    images = copy(images)
    images.labels, images.class_names = np.asarray(labels, dtype=np.int64), None
    return images


def _figures(comparison: Comparison, names: Sequence[str], strict: bool) -> dict[str, Any]:
    """Compute metrics; those that cannot be are None, or an error if they were asked for."""
    results: dict[str, Any] = dict.fromkeys(METRICS)
    left_out: dict[str, str] = {}
    for name in names:
        try:
            results |= metric(name)(comparison)
        except Unavailable as error:
            if strict:
                raise ValueError(f"metrics: {name} cannot be computed: {error}") from None
            left_out[name] = str(error)
    warnings = []
    if "fd" in names:
        sets = {"drawn": comparison.drawn, "reference": comparison.reference}
        maybe = [rank_warning(summary.moments, what) for what, summary in sets.items()]
        warnings = [warning for warning in maybe if warning is not None]
    if OF_CLASSES & set(names):
        warnings += comparison.class_warnings()
    return {**results, "left_out": left_out, "warnings": warnings}


def _inputs(comparison: Comparison, network: FeatureNetwork) -> dict[str, Any]:
    """Describe the inputs: names, counts, digests, versions."""
    drawn, reference, training = comparison.drawn, comparison.reference, comparison.training
    counts = {"drawn": drawn.count, "reference": reference.count}
    sets: dict[str, Any] = {
        name: {"name": each.name, "digest": each.digest, "size": each.size}
        for name, each in (("drawn", drawn), ("reference", reference))
    }
    if training is not None:
        counts["training"] = training.count
        sets["training"] = {"name": training.name, "real": training.real_name}
    return {
        "features": network.name,
        "distance": network.distance,
        "dtype": network.dtype_name,
        "weights": network.weights,
        "counts": counts,
        "sets": sets,
        "order": None if drawn.score is None else drawn.score.order,
        "distances": "float16" if comparison.half else "float64",
        "versions": {**environment(), "numpy": np.__version__},
    }


def _leave_one_out(drawn: Summary, reference: Reference, device: torch.device) -> NearestTraining | None:
    """Take the reference for the training set, if its features are known."""
    known = reference.summary
    # A radius needs a neighbour.
    if reference.training is not None or known.features is None or len(known.features) < 2:
        return None
    assert drawn.features is not None
    return leave_one_out(drawn.features.to(device), known.features.to(device), known.indices, known.name)


def _search_training(
    drawn: Summary | None,
    reference: Reference,
    device: torch.device,
    *,
    batch_size: int,
    processes: Processes,
) -> NearestTraining | None:
    """Look for the nearest images in a training set of its own; the result is rank 0's alone."""
    training = reference.training
    if training is None:
        return None

    def features() -> list[torch.Tensor]:
        assert drawn is not None
        return [each.features for each in (drawn, reference.summary) if each.features is not None]

    # The reference's images are then not for training: the real ones to compare with.
    vectors = processes.run_on_rank0(features)
    if len(vectors) < 2:
        return None
    nearest, count = Nearest(torch.cat(vectors).to(device)), 0
    with processes.raising_together():
        for indices, outputs in features_of(training, reference.network, batch_size, processes):
            nearest.update(outputs.features, indices)
            count += len(indices)
    parts = processes.gather((nearest.state, count))
    if not parts:
        return None
    nearest.merge([state for state, _ in parts[1:]])
    distances, indices, first = nearest.distances, nearest.indices.cpu().numpy(), len(vectors[0])
    real, total = distances[first:], sum(number for _, number in parts)
    if np.quantile(real, 0.05) == 0:
        logger.warning("5 %% of the reference's images or more are training images themselves")
    return NearestTraining(
        training.name, total, distances[:first], indices[:first], real, reference.summary.name
    )
