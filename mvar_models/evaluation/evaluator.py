"""`evaluate`: the field's protocol in one call."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mvar_models.devices import checked_device
from mvar_models.distributed import Processes
from mvar_models.environment import environment
from mvar_models.evaluation.bootstrap import bootstrap_intervals
from mvar_models.evaluation.by_class import by_class
from mvar_models.evaluation.comparison import Comparison, NearestTraining, Unavailable, leave_one_out
from mvar_models.evaluation.features.network import (
    DEFAULT_FEATURES,
    FeatureNetwork,
    check_ready,
    dtype_name,
    feature_network,
)
from mvar_models.evaluation.figures import write_images
from mvar_models.evaluation.frechet import FrechetReference, rank_warning
from mvar_models.evaluation.image_sets import ImageSet, batches, open_set
from mvar_models.evaluation.metrics import COMPARED, FROM_STATISTICS, METRICS, OF_ARRAYS, metric
from mvar_models.evaluation.nearest import Nearest
from mvar_models.evaluation.statistics_file import has_statistics, read_statistics, save_statistics
from mvar_models.evaluation.summary import Summary, summarize

logger = logging.getLogger(__name__)

_BY_CLASS = {"label_agreement", "class_diversity"}
# What `open_set` takes.
Place = Any
Report = Callable[[str, int, int], None]


@dataclass
class Reference:
    """A reference that is ready to be compared with any number of drawn sets.

    Attributes:
        summary: What the network says about it; on rank 0 alone, None elsewhere.
        network: The network.
        training: The training set to look for copies in, if it is not the reference itself.
    """

    summary: Summary | None
    network: FeatureNetwork
    training: ImageSet | None = None
    _frechet: FrechetReference | None = None
    _warned: set[str] = field(default_factory=set)

    @property
    def frechet(self) -> FrechetReference:
        """The covariance with its root, which is computed once."""
        assert self.summary is not None
        if self._frechet is None:
            try:
                self._frechet = FrechetReference(self.summary.moments)
            except ValueError as error:
                raise ValueError(f"{self.summary.name}: {error}") from None
        return self._frechet

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
    workers: Processes | None = None,
    report: Report | None = None,
) -> dict[str, Any]:
    """Compare drawn images with a reference.

    Args:
        drawn: Images as a pipeline returns them, an array (N, H, W, 3) of uint8, an .npz, a folder, a dataset
            as for `--data` (its parts as "digits@train" and "digits@held-out"), or an `ImageSet`; see
            `open_set`.
        reference: The same, or an .npz of statistics, or what `prepare_reference` returned.
        features: Name of a feature network, see `FEATURES`, or the network itself. Default: that of a
            prepared reference, else "efficientnet-lite0".
        metrics: Names among `COMPARED`. Default: all that images and features allow.
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
        workers: Processes that share the work, each of which makes this call.
        report: Called with the name of a set, its images that this process has done, and those it has to do.

    Returns:
        Figures by name: `fd`, `sfd`, `is`, `precision`, `recall`, `density`, `coverage`, `kid`,
        `near_copies`, `label_agreement`, `class_diversity`, None where they could not be computed, with
        the reason in `left_out`; `features`, `counts`, `versions`, and what else decides them. The same in
        all processes.

    Raises:
        ValueError: wrong arguments, images that cannot be compared, a metric that was asked for by name and
            cannot be computed, or arguments that a ready network or reference contradicts.
    """
    workers = workers or Processes()
    names = check_metrics(metrics)
    place = checked_device(device)
    # Metal has no float64, which distances are computed in.
    apart = torch.device("cpu") if place.type == "mps" else place
    if bootstrap < 0:
        raise ValueError(f"bootstrap must be 0 or more, got {bootstrap}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    images = open_set(drawn, resolution=resolution, name="drawn")
    if labels is not None:
        if len(labels) != len(images):
            raise ValueError(f"labels must be one per image, got {len(labels)} for {len(images)}")
        # A copy: the caller's set stays as it is. These numbers need not be those of its names.
        images = copy(images)
        images.labels = np.asarray(labels, dtype=np.int64)
        images.class_names = None  # type: ignore[attr-defined]
    if isinstance(reference, Reference):
        if training is not None and training is not reference.training:
            raise ValueError("training: the reference was prepared with its own training set; leave it out")
        check_ready(reference.network, features, dtype, weights, "the reference was prepared")
        prepared = reference
    else:
        if features is None or isinstance(features, str):
            network = feature_network(
                features or DEFAULT_FEATURES, device=place, dtype=dtype or torch.float32, weights=weights
            )
        else:
            network = features
            check_ready(network, None, dtype, weights, "features were given")
        prepared = prepare_reference(
            reference, network, metrics=metrics, per_class=per_class, training=training,
            resolution=resolution or images.size[0], batch_size=batch_size, workers=workers, report=report,
        )  # fmt: skip
    workers.run_on_rank0(lambda: _check_sizes(images, prepared))
    if statistics is not None:
        workers.run_on_rank0(lambda: save_statistics(_known(prepared.summary), statistics))
    keep = bool(set(names) - FROM_STATISTICS) or bootstrap > 0 or bool(per_class)
    summary = summarize(
        images,
        prepared.network,
        batch_size=batch_size,
        keep=keep,
        workers=workers,
        report=_to(report, images),
    )
    copies = None
    if "near_copies" in names:
        copies = _nearest(summary, prepared, batch_size, apart, workers, report)

    def compare() -> dict[str, Any]:
        comparison = Comparison(
            _known(summary), _known(prepared.summary), training=copies, device=apart,
            half=half_distances, frechet=prepared.frechet,
        )  # fmt: skip
        results = _figures(comparison, names, strict=metrics is not None)
        prepared.warn(results["warnings"])
        results |= _described(comparison, prepared)
        if per_class is not False:
            results |= by_class(comparison, strict=per_class is True)
        if bootstrap:
            results["intervals"] = bootstrap_intervals(comparison, bootstrap)
        if images_to is not None:
            write_images(comparison, results, prepared.training, Path(images_to))
        return results

    return workers.run_on_rank0(compare)


def prepare_reference(
    reference: Place,
    network: FeatureNetwork,
    *,
    metrics: Sequence[str] | None = None,
    per_class: bool | None = None,
    training: Place | None = None,
    resolution: int | None = None,
    batch_size: int = 32,
    workers: Processes | None = None,
    report: Report | None = None,
) -> Reference:
    """Compute the reference's part of `evaluate`, for comparison with several drawn sets.

    Args:
        reference: As for `evaluate`.
        network: The feature network.
        metrics: What will be asked for; features are kept where it needs them.
        per_class: Whether figures of each class will be asked for, which need them too.
        training: As for `evaluate`.
        resolution: Side of the images of datasets.
        batch_size: Images at a time.
        workers: Processes that share the work, each of which makes this call.
        report: As for `evaluate`.
    """
    names = check_metrics(metrics)
    keep = bool(set(names) - FROM_STATISTICS) or bool(per_class)
    summary, images = None, None
    if has_statistics(reference):
        assert isinstance(reference, str | os.PathLike)
        summary, images = read_statistics(reference, network)
    else:
        images = open_set(reference, resolution=resolution, name="reference")
    if images is not None and (summary is None or (keep and summary.features is None)):
        found = summarize(
            images, network, batch_size=batch_size, keep=keep, workers=workers, report=_to(report, images)
        )
        if summary is not None and found is not None:
            # Ready statistics are of all the reference's images, of which the file holds some.
            found.moments, found.spatial, found.count = summary.moments, summary.spatial, summary.count
        summary = found
    others = None if training is None else open_set(training, resolution=resolution, name="training")
    return Reference(summary, network, others)


def check_metrics(metrics: Sequence[str] | None) -> tuple[str, ...]:
    """Return the metrics to compute.

    Raises:
        ValueError: an unknown metric, or one that does not compare sets of images.
    """
    for name in metrics or ():
        if name not in METRICS or name in OF_ARRAYS:
            raise ValueError(f"metrics: {name!r} does not compare sets; those that do: {', '.join(COMPARED)}")
    return COMPARED if metrics is None else tuple(metrics)


def _figures(comparison: Comparison, names: Sequence[str], strict: bool) -> dict[str, Any]:
    """Compute metrics; those that cannot be are None, or an error if they were asked for."""
    results: dict[str, Any] = dict.fromkeys(COMPARED)
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
        for summary, what in ((comparison.drawn, "drawn"), (comparison.reference, "reference")):
            warning = rank_warning(summary.moments, what)
            if warning is not None:
                warnings.append(warning)
    if _BY_CLASS & set(names):
        warnings += comparison.class_warnings()
    return {**results, "left_out": left_out, "warnings": warnings}


def _described(comparison: Comparison, prepared: Reference) -> dict[str, Any]:
    """Say what the figures are of."""
    drawn, reference, training = comparison.drawn, comparison.reference, comparison.training
    counts = {"drawn": drawn.count, "reference": reference.count}
    sets = {"drawn": drawn, "reference": reference}
    described: dict[str, Any] = {
        name: {"name": each.name, "digest": each.digest, "size": each.size} for name, each in sets.items()
    }
    if training is not None:
        counts["training"] = training.count
        described["training"] = {"name": training.name, "real": training.real_name}
    network = prepared.network
    return {
        "features": network.name,
        "distance": network.distance,
        "dtype": dtype_name(network),
        "weights": network.weights,
        "counts": counts,
        "sets": described,
        "order": None if drawn.score is None else drawn.score.order,
        "distances": "float16" if comparison.half else "float64",
        "versions": {**environment(), "numpy": np.__version__},
    }


def _nearest(
    drawn: Summary | None,
    prepared: Reference,
    batch_size: int,
    device: torch.device | str,
    workers: Processes,
    report: Report | None,
) -> NearestTraining | None:
    """Look for the nearest training images; the result is rank 0's alone."""
    reference = prepared.summary
    if prepared.training is None:

        def alone() -> NearestTraining | None:
            known = _known(reference)
            # A radius needs a neighbour.
            if known.features is None or len(known.features) < 2:
                return None
            return leave_one_out(known, _known(drawn), device)

        return workers.run_on_rank0(alone)
    training = prepared.training
    # Real images to compare with: the reference's, which are then not for training, or the training images.
    vectors = workers.run_on_rank0(
        lambda: [each.features for each in (_known(drawn), _known(reference)) if each.features is not None]
    )
    if len(vectors) < 2:
        return None
    nearest = Nearest(torch.cat(vectors).to(device))
    count = 0
    with workers.raising_together():
        tell = _to(report, training)
        mine = -(-len(training) // workers.world_size)
        for indices, batch in batches(training, batch_size, workers.rank, workers.world_size):
            nearest.update(
                prepared.network(torch.from_numpy(np.require(batch, requirements=["C", "W"]))).features,
                indices,
            )
            count += len(indices)
            if tell is not None:
                tell(min(count, mine), mine)
    states = workers.gather((nearest.state, count))
    if not states:
        return None
    nearest.merge([state for state, _ in states[1:]])
    distances, indices, first = nearest.distances, nearest.indices.cpu().numpy(), len(vectors[0])
    real = distances[first:]
    if np.quantile(real, 0.05) == 0:
        logger.warning("5 %% of the reference's images or more are training images themselves")
    return NearestTraining(
        training.name,
        sum(number for _, number in states),
        distances[:first],
        indices[:first],
        real,
        _known(reference).name,
    )


def _check_sizes(drawn: ImageSet, prepared: Reference) -> None:
    reference, training = _known(prepared.summary), prepared.training
    expected = [("the reference", reference.name, reference.size)]
    if training is not None:
        expected.append(("the training set", training.name, training.size))
    for what, name, size in expected:
        if size is not None and tuple(size) != tuple(drawn.size):
            (height, width), (first, second) = size, drawn.size
            raise ValueError(
                f"{drawn.name} has images of {second} x {first} pixels, {what} {name} of {width} x {height}: "
                "a resize of one would decide the distance"
            )


def _known(summary: Summary | None) -> Summary:
    assert summary is not None, "rank 0 has the summaries"
    return summary


def _to(report: Report | None, images: ImageSet) -> Callable[[int, int], None] | None:
    if report is None:
        return None
    return lambda done, total: report(images.name, done, total)
