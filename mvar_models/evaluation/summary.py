"""One pass of a feature network over a set of images, and what is kept of it.

Mean, covariance and the sums of the Inception score take memory that does not grow with the set. The
metrics that ask for neighbours need the features themselves, in float32: 410 MB for 50,000 times 2,048.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mvar_models.distributed import Processes
from mvar_models.evaluation.features.network import FeatureNetwork, dtype_name
from mvar_models.evaluation.image_sets import ImageSet, batches
from mvar_models.evaluation.inception_score import InceptionScore
from mvar_models.evaluation.moments import Moments


@dataclass
class Summary:
    """What a feature network says about a set of images.

    Attributes:
        name: The set's name.
        network: The feature network's name.
        count: Number of images; None where a file of statistics does not say.
        moments: Mean and covariance of the features.
        spatial: The same of the spatial features; None where the network has none.
        score: Sums of the Inception score; None without a classifier.
        features: (n, D) float32 on the CPU, if they were kept.
        indices: (n,) int64, the images that the features are of.
        labels: (n,) int64, their classes, if known.
        class_names: One name per class, "" where one is not known; None where none is.
        size: Height and width of the images; None where unknown.
        digest: Hex digits that identify the content, or "".
        weights: What identifies the network's weights, as its own attribute does.
        dtype: Type that the features were computed in.
        images: The set itself; None where only statistics are left.
    """

    name: str
    network: str
    count: int | None
    moments: Moments
    spatial: Moments | None = None
    score: InceptionScore | None = None
    features: Tensor | None = None
    indices: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    labels: np.ndarray | None = None
    class_names: Sequence[str] | None = None
    size: tuple[int, int] | None = None
    digest: str = ""
    weights: str = ""
    dtype: str = "float32"
    images: ImageSet | None = None


class _Pass:
    """Running statistics of this process's batches."""

    def __init__(self, images: ImageSet, keep: bool) -> None:
        self.moments: Moments | None = None
        self.spatial: Moments | None = None
        self.score: InceptionScore | None = None
        self.kept: list[tuple[np.ndarray, np.ndarray]] = []
        self.count = 0
        self._keep = keep
        self._total = len(images)
        self._labels = images.labels

    def take(self, network: FeatureNetwork, indices: np.ndarray, images: np.ndarray) -> None:
        outputs = network(torch.from_numpy(np.require(images, requirements=["C", "W"])))
        self.count += len(indices)
        self.moments = self.moments or Moments(outputs.features.shape[1])
        self.moments.update(outputs.features)
        if outputs.spatial is not None:
            self.spatial = self.spatial or Moments(outputs.spatial.shape[1])
            self.spatial.update(outputs.spatial)
        if outputs.logits is not None:
            self.score = self.score or InceptionScore(self._total, self._labels)
            self.score.update(outputs.logits, indices)
        if self._keep:
            self.kept.append((indices, outputs.features.cpu().numpy()))

    def result(self) -> dict[str, Any]:
        kept = ("moments", "spatial", "score", "kept", "count")
        return {name: getattr(self, name) for name in kept}


def summarize(
    images: ImageSet,
    network: FeatureNetwork,
    *,
    batch_size: int = 32,
    keep: bool = True,
    workers: Processes | None = None,
    report: Callable[[int, int], None] | None = None,
) -> Summary | None:
    """Run a feature network over a set of images.

    Args:
        images: The set.
        network: The feature network.
        batch_size: Images at a time.
        keep: Also keep the features.
        workers: Processes that share the work. Default: this one alone.
        report: Called with the images that this process has done and those that it has to do.

    Returns:
        The summary on rank 0, None elsewhere.

    Raises:
        ValueError: there are fewer than two images that can be read.
    """
    workers = workers or Processes()
    found = _Pass(images, keep)
    with workers.raising_together():
        mine = -(-len(images) // workers.world_size)
        for indices, batch in batches(images, batch_size, workers.rank, workers.world_size):
            found.take(network, indices, batch)
            if report is not None:
                report(min(found.count, mine), mine)
    parts = workers.gather(found.result())
    return _joined(images, network, parts, keep) if parts else None


def _joined(images: ImageSet, network: FeatureNetwork, parts: list[dict[str, Any]], keep: bool) -> Summary:
    source = getattr(images, "source", None)
    if source is not None:
        source.log_problems()
    count = sum(part["count"] for part in parts)
    if count < 2:
        raise ValueError(f"{images.name} must have at least 2 images, got {count}")
    merged: dict[str, Any] = {}
    for name in ("moments", "spatial", "score"):
        present = [part[name] for part in parts if part[name] is not None]
        merged[name] = present[0] if present else None
        for other in present[1:]:
            merged[name].merge(other)
    features, indices = None, np.arange(count)
    if keep:
        pairs = [pair for part in parts for pair in part["kept"]]
        indices = np.concatenate([pair[0] for pair in pairs])
        order = np.argsort(indices)
        features = torch.from_numpy(np.concatenate([pair[1] for pair in pairs])[order])
        indices = indices[order]
    labels = None if images.labels is None or not keep else images.labels[indices]
    return Summary(
        images.name,
        network.name,
        count,
        **merged,
        features=features,
        indices=indices,
        labels=labels,
        class_names=getattr(images, "class_names", None),
        size=images.size,
        digest=images.digest,
        weights=network.weights,
        dtype=dtype_name(network),
        images=images,
    )
