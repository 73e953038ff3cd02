"""The metrics that compare a drawn set with a reference: one function each, which takes a `Comparison`.

What several of them need, such as all distances, is computed once, by the `Comparison`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mvar_models.data.class_names import listed, renumbered
from mvar_models.evaluation.frechet import FrechetReference
from mvar_models.evaluation.kernel_distance import SUBSET, kernel_distance
from mvar_models.evaluation.nearest import Nearest, apart, copy_distance
from mvar_models.evaluation.neighbours import Neighbourhoods, neighbourhoods
from mvar_models.evaluation.summary import Summary


class Unavailable(ValueError):
    """A metric that these images or features do not allow; the message says why."""


@dataclass(frozen=True)
class NearestTraining:
    """The nearest training images.

    Attributes:
        name: Of the training set.
        count: Number of training images.
        distances: (n,) of each drawn image to the nearest training image.
        indices: (n,) which one that is.
        real: Distances of real images to the nearest (other) training image.
        real_name: What those real images are.
    """

    name: str
    count: int
    distances: np.ndarray
    indices: np.ndarray
    real: np.ndarray
    real_name: str


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

    def features(self) -> tuple[Tensor, Tensor]:
        """Return the features of both sets on the device.

        Raises:
            Unavailable: the features of one were not kept.
        """
        for summary in (self.drawn, self.reference):
            if summary.features is None:
                raise Unavailable(
                    f"{summary.name} has statistics alone, as read or as prepared for other metrics; this "
                    "metric needs the images"
                )
        assert self.drawn.features is not None and self.reference.features is not None
        return self.drawn.features.to(self._device), self.reference.features.to(self._device)

    def labels(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the classes of both sets' images as the drawn set numbers them, (n,) and (m,) int64.

        A class of the reference that has no name among those of the drawn set is -1.

        Raises:
            Unavailable: those of one are not known, or no class is in both.
        """
        return self._labels

    @cached_property
    def _labels(self) -> tuple[np.ndarray, np.ndarray]:
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
        """Return what to say of the classes: those that the reference lacks, and names that are not known."""
        try:
            drawn, reference = self.labels()
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
        drawn, reference = self.features()
        try:
            return neighbourhoods(drawn, reference, half=self.half)
        except ValueError as error:
            raise Unavailable(str(error)) from None


def fd(comparison: Comparison) -> dict[str, float]:
    """Return the Frechet distance of the features."""
    return {"fd": comparison.frechet.distance(comparison.drawn.moments)}


def sfd(comparison: Comparison) -> dict[str, float]:
    """Return the Frechet distance of the spatial features, sFID with those of `inception-tf`."""
    first, second = comparison.drawn.spatial, comparison.reference.spatial
    if first is None or second is None:
        which = comparison.drawn if first is None else comparison.reference
        raise Unavailable(f"{which.name} has no spatial features with {comparison.drawn.network}")
    return {"sfd": FrechetReference(second, name="spatial features").distance(first)}


def inception(comparison: Comparison) -> dict[str, float]:
    """Return the Inception score of the drawn images and its deviation over splits."""
    if comparison.drawn.score is None:
        raise Unavailable(f"the features {comparison.drawn.network} give no class probabilities")
    mean, deviation = comparison.drawn.score.result()
    return {"is": mean, "is_deviation": deviation}


def precision(comparison: Comparison) -> dict[str, float]:
    """Return the share of drawn images within the reference's neighbourhoods, k = 3."""
    return {"precision": comparison.neighbourhoods.precision}


def recall(comparison: Comparison) -> dict[str, float]:
    """Return the share of reference images within the drawn images' neighbourhoods, k = 3."""
    return {"recall": comparison.neighbourhoods.recall}


def density(comparison: Comparison) -> dict[str, float]:
    """Return how many of the reference's neighbourhoods hold a drawn image, over k = 5."""
    return {"density": comparison.neighbourhoods.density}


def coverage(comparison: Comparison) -> dict[str, float]:
    """Return the share of reference images whose neighbourhood holds a drawn image, k = 5."""
    return {"coverage": comparison.neighbourhoods.coverage}


def kid(comparison: Comparison) -> dict[str, float]:
    """Return the kernel distance, its deviation over subsets, and the images of a subset."""
    drawn, reference = comparison.features()
    mean, deviation = kernel_distance(drawn, reference)
    return {
        "kid": mean,
        "kid_deviation": deviation,
        "kid_subset": min(SUBSET, len(drawn), len(reference)),
    }


def near_copies(comparison: Comparison) -> dict[str, float]:
    """Return the share of drawn images as close to a training image as the closest 5 % of real images are."""
    training = comparison.training
    if training is None:
        raise Unavailable("the training images are not known: name them, or a reference with images")
    limit = copy_distance(training.real)
    return {
        "near_copies": float((training.distances <= limit).mean()),
        "near_copy_distance": limit,
        "nearest_distance": float(np.median(training.distances)),
        "nearest_distance_real": float(np.median(training.real)),
    }


def leave_one_out(reference: Summary, drawn: Summary, device: torch.device | str) -> NearestTraining:
    """Take the reference for the training set; real images are its own, each without itself."""
    assert reference.features is not None and drawn.features is not None
    features = reference.features.to(device)
    nearest = Nearest(drawn.features.to(device))
    nearest.update(features, reference.indices)
    return NearestTraining(
        reference.name,
        len(features),
        nearest.distances,
        nearest.indices.cpu().numpy(),
        apart(features),
        "the same images, each without itself",
    )
