"""The metrics that compare a drawn set with a reference: functions of a `Comparison`, rows of `METRICS`.

A `Comparison` computes once what several metrics need, such as all distances.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mvar_models.data.class_names import listed, renumbered
from mvar_models.evaluation.nearest import (
    COVERAGE_NEIGHBOURS,
    Nearest,
    NearestTraining,
    Neighbourhoods,
    copy_distance,
    neighbourhoods,
)
from mvar_models.evaluation.scores import (
    SUBSET,
    FrechetReference,
    Moments,
    frechet_distance,
    kernel_distance,
)
from mvar_models.evaluation.summary import Summary
from mvar_models.registry import resolve

_HERE = "mvar_models.evaluation.comparison"
# A new metric is a function in a file of this folder, and one row here.
METRICS: dict[str, str] = {
    "fd": f"{_HERE}:fd",
    "sfd": f"{_HERE}:sfd",
    "is": f"{_HERE}:inception",
    "precision": f"{_HERE}:precision",
    "recall": f"{_HERE}:recall",
    "density": f"{_HERE}:density",
    "coverage": f"{_HERE}:coverage",
    "kid": f"{_HERE}:kid",
    "near_copies": f"{_HERE}:near_copies",
    "label_agreement": f"{_HERE}:label_agreement",
    "class_diversity": f"{_HERE}:class_diversity",
}
# For these statistics are enough, so that no features are kept; those need classes.
FROM_STATISTICS = frozenset({"fd", "sfd", "is"})
OF_CLASSES = frozenset({"label_agreement", "class_diversity"})
_RESAMPLING_SEED = 0
_NORMAL = 1.96


class Unavailable(ValueError):
    """A metric that these images or features do not allow; the message says why."""


def metric(name: str) -> Callable[[Comparison], dict[str, float]]:
    """Return the function that computes a metric, and figures that belong to it, from a `Comparison`.

    Raises:
        ValueError: no metric of that name.
    """
    if name not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {name!r}")
    function: Callable[[Comparison], dict[str, float]] = resolve(METRICS[name])
    return function


class Comparison:
    """A drawn set and a reference, as one feature network sees them.

    Args:
        drawn: The drawn set.
        reference: The reference.
        training: The nearest training images, if they were looked for.
        device: Where distances are computed.
        half: Distances in float16, as in OpenAI's evaluator.
        frechet: The reference's covariance, if its root is known already.
    """

    def __init__(
        self,
        drawn: Summary,
        reference: Summary,
        *,
        training: NearestTraining | None = None,
        device: torch.device | str = "cpu",
        half: bool = False,
        frechet: FrechetReference | None = None,
    ) -> None:
        self.drawn = drawn
        self.reference = reference
        self.training = training
        self.half = half
        self._device = torch.device(device)
        self._frechet = frechet

    @property
    def features(self) -> tuple[Tensor, Tensor]:
        """(n, D) and (m, D), the features of both sets on the device.

        Raises:
            Unavailable: those of one were not kept.
        """
        for summary in (self.drawn, self.reference):
            if summary.features is None:
                raise Unavailable(
                    f"{summary.name} has statistics alone, as read or as prepared for other metrics; this "
                    "metric needs the images"
                )
        assert self.drawn.features is not None and self.reference.features is not None
        return self.drawn.features.to(self._device), self.reference.features.to(self._device)

    @cached_property
    def labels(self) -> tuple[np.ndarray, np.ndarray]:
        """(n,) and (m,) int64, the classes of both sets' images as the drawn set numbers them.

        A class of the reference that has no name among those of the drawn set is -1.

        Raises:
            Unavailable: those of one are not known, or no class is in both.
        """
        for summary in (self.drawn, self.reference):
            if summary.labels is None:
                raise Unavailable(
                    f"{summary.name} has no labels; a folder per class has, and an .npz with arr_1 or labels"
                )
        assert self.drawn.labels is not None and self.reference.labels is not None
        drawn, names, others = self.drawn.labels, self.drawn.class_names, self.reference.class_names
        reference = renumbered(self.reference.labels, others, names)
        if not np.intersect1d(drawn, reference).size:
            raise Unavailable(
                f"no class of {self.drawn.name} ({listed(np.unique(drawn), names)}) is one of "
                f"{self.reference.name} ({listed(np.unique(self.reference.labels), others)}); "
                "call the same classes alike"
            )
        return drawn, reference

    def class_warnings(self) -> list[str]:
        """Return warnings about classes that the reference lacks, and about names that are not known."""
        try:
            drawn, reference = self.labels
        except Unavailable:
            return []
        warnings, names = [], self.drawn.class_names
        lacking = np.setdiff1d(drawn, reference)
        if len(lacking):
            warnings.append(
                f"{self.reference.name} has none of {len(lacking)} classes of {self.drawn.name}: "
                f"{listed(lacking, names)}"
            )
        nameless = [each for each in (self.drawn, self.reference) if each.class_names is None]
        if len(nameless) == 1:
            warnings.append(f"classes are compared by number: those of {nameless[0].name} have no names")
        return warnings

    @cached_property
    def frechet(self) -> FrechetReference:
        """The reference's covariance with its root."""
        return self._frechet or FrechetReference(self.reference.moments)

    @cached_property
    def neighbourhoods(self) -> Neighbourhoods:
        """Which images lie in the other set's neighbourhoods."""
        try:
            return neighbourhoods(*self.features, half=self.half)
        except ValueError as error:
            raise Unavailable(str(error)) from None


def fd(comparison: Comparison) -> dict[str, float]:
    """Compute the Frechet distance of the features."""
    return {"fd": comparison.frechet.distance(comparison.drawn.moments)}


def sfd(comparison: Comparison) -> dict[str, float]:
    """Compute the Frechet distance of the spatial features, sFID with those of `inception-tf`."""
    first, second = comparison.drawn.spatial, comparison.reference.spatial
    if first is None or second is None:
        which = comparison.drawn if first is None else comparison.reference
        raise Unavailable(f"{which.name} has no spatial features with {comparison.drawn.network}")
    return {"sfd": FrechetReference(second, name="spatial features").distance(first)}


def inception(comparison: Comparison) -> dict[str, float]:
    """Compute the Inception score of the drawn images and its deviation over splits."""
    if comparison.drawn.score is None:
        raise Unavailable(f"the features {comparison.drawn.network} give no class probabilities")
    mean, deviation = comparison.drawn.score.result()
    return {"is": mean, "is_deviation": deviation}


def precision(comparison: Comparison) -> dict[str, float]:
    """Compute the share of drawn images within the reference's neighbourhoods, k = 3."""
    return {"precision": comparison.neighbourhoods.precision}


def recall(comparison: Comparison) -> dict[str, float]:
    """Compute the share of reference images within the drawn images' neighbourhoods, k = 3."""
    return {"recall": comparison.neighbourhoods.recall}


def density(comparison: Comparison) -> dict[str, float]:
    """Compute how many of the reference's neighbourhoods hold a drawn image, over k = 5."""
    return {"density": comparison.neighbourhoods.density}


def coverage(comparison: Comparison) -> dict[str, float]:
    """Compute the share of reference images whose neighbourhood holds a drawn image, k = 5."""
    return {"coverage": comparison.neighbourhoods.coverage}


def kid(comparison: Comparison) -> dict[str, float]:
    """Compute the kernel distance, its deviation over subsets, and the images of a subset."""
    drawn, reference = comparison.features
    mean, deviation = kernel_distance(drawn, reference)
    size = min(SUBSET, len(drawn), len(reference))
    return {"kid": mean, "kid_deviation": deviation, "kid_subset": size}


def near_copies(comparison: Comparison) -> dict[str, float]:
    """Compute the share of drawn images as close to a training image as the closest 5 % of real images."""
    training = comparison.training
    if training is None:
        raise Unavailable("the training images are not known: name them, or a reference with images")
    return {
        "near_copies": float(training.near.mean()),
        "near_copy_distance": copy_distance(training.real),
        "nearest_distance": float(np.median(training.distances)),
        "nearest_distance_real": float(np.median(training.real)),
    }


def label_agreement(comparison: Comparison) -> dict[str, float]:
    """Compute the share of drawn images whose nearest reference image is of their own class.

    Real images do not reach 1 either; evaluate held-out ones with the same reference to know what they reach.
    """
    labels, reference_labels = comparison.labels
    drawn, reference = comparison.features
    nearest = Nearest(drawn)
    nearest.update(reference, torch.arange(len(reference), device="cpu"))
    agreeing = reference_labels[nearest.indices.cpu().numpy()] == labels
    return {"label_agreement": float(agreeing.mean())}


def class_diversity(comparison: Comparison) -> dict[str, float]:
    """Compute the root mean square distance of two drawn images of a class over that of reference images.

    1 is as diverse as the reference. Each class with two images in both sets weighs the same. A model that
    makes one good image per class loses little recall or coverage where classes are many, but has a diversity
    of 0. Damage such as noise moves images apart too, so read a value above 1 beside precision.
    """
    labels, reference_labels = comparison.labels
    drawn, reference = (features.double() for features in comparison.features)
    ours: list[float] = []
    theirs: list[float] = []
    for label in np.intersect1d(labels, reference_labels):
        groups = drawn[labels == label], reference[reference_labels == label]
        if min(map(len, groups)) < 2:
            continue
        # Two images differ by twice the variance, on average.
        for group, variances in zip(groups, (ours, theirs)):
            variances.append(group.var(0, correction=1).sum().item())
    if sum(theirs) == 0:
        raise Unavailable("no class has two different images in the reference, and two that were drawn")
    return {"class_diversity": float(np.sqrt(sum(ours) / sum(theirs)))}


def by_class(comparison: Comparison, *, strict: bool = False) -> dict[str, Any]:
    """Compute figures of each class that both sets have.

    A class has few images, so its Frechet distance is too large; it ranks classes with equal numbers of
    images, and is not to be compared with that of the whole set.

    Args:
        comparison: The two sets.
        strict: Raise where the classes are not known, instead of returning nothing.

    Returns:
        {"per_class": figures}, one entry per class, worst distance first: `label` in the drawn set and, if
        known, `name`, `count`, `fd`, the `precision` of its images within the whole reference, and the median
        `nearest_distance`.

    Raises:
        ValueError: `strict`, and the classes of a set are not known.
    """
    drawn, reference = comparison.drawn, comparison.reference
    try:
        drawn_labels, reference_labels = comparison.labels
    except Unavailable as error:
        if strict:
            raise ValueError(f"per_class: {error}") from None
        return {}
    if drawn.features is None or reference.features is None:
        return {}
    try:
        inside = comparison.neighbourhoods.inside.numpy()
    except Unavailable:
        inside = None
    rows = []
    for label in np.intersect1d(drawn_labels, reference_labels):
        ours, theirs = np.flatnonzero(drawn_labels == label), np.flatnonzero(reference_labels == label)
        if min(len(ours), len(theirs)) < 2:
            continue
        row: dict[str, Any] = {"label": int(label), "count": len(ours)}
        if drawn.class_names is not None:
            row["name"] = drawn.class_names[label]
        row["fd"] = frechet_distance(drawn.features.numpy()[ours], reference.features.numpy()[theirs])
        if inside is not None:
            row["precision"] = float(inside[ours].mean())
        if comparison.training is not None:
            row["nearest_distance"] = float(np.median(comparison.training.distances[ours]))
        rows.append(row)
    return {"per_class": sorted(rows, key=lambda row: -row["fd"])}


def bootstrap_intervals(comparison: Comparison, times: int) -> dict[str, dict[str, float]]:
    """Resample the drawn images with replacement (Efron 1979): how far figures move with other images.

    A resample repeats images, so its Frechet distance is larger than that of the set itself, and percentiles
    would not contain the figure. Intervals are the figure plus and minus 1.96 deviations of the resamples,
    and never below 0, where none of the figures goes.

    Args:
        comparison: The two sets, with features.
        times: Number of resamples, at least 2.

    Returns:
        `deviation`, `low` and `high` of `fd` and of the shares of drawn images: `precision`, `density`,
        `near_copies`. Recall and coverage are shares of reference images, which stay as they are.

    Raises:
        ValueError: fewer than two resamples, or the features were not kept.
    """
    if times < 2:
        raise ValueError(f"bootstrap must be 0, or at least 2, got {times}")
    drawn = comparison.drawn
    if drawn.features is None:
        raise ValueError("bootstrap needs the drawn images' features, which were not kept")
    features = drawn.features.double().numpy()
    per_image: dict[str, np.ndarray] = {}
    try:
        near = comparison.neighbourhoods
        per_image["precision"] = near.inside.double().numpy()
        per_image["density"] = near.around.double().numpy() / COVERAGE_NEIGHBOURS
    except Unavailable:
        pass
    if comparison.training is not None:
        per_image["near_copies"] = comparison.training.near.astype(float)
    figures = {"fd": comparison.frechet.distance(drawn.moments)}
    figures |= {name: float(values.mean()) for name, values in per_image.items()}
    rng = np.random.default_rng(_RESAMPLING_SEED)
    resampled: dict[str, list[float]] = {name: [] for name in figures}
    for _ in range(times):
        chosen = rng.integers(0, len(features), len(features))
        resampled["fd"].append(comparison.frechet.distance(Moments.of(features[chosen])))
        for name, values in per_image.items():
            resampled[name].append(float(values[chosen].mean()))
    intervals = {}
    for name, figure in figures.items():
        deviation = float(np.std(resampled[name], ddof=1))
        low = max(figure - _NORMAL * deviation, 0.0)
        intervals[name] = {"deviation": deviation, "low": low, "high": figure + _NORMAL * deviation}
    return intervals
