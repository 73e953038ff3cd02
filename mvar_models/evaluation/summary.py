"""One pass of a feature network over a set of images.

Mean, covariance and the sums of the Inception score take memory that does not grow with the set. The
metrics that ask for neighbours need the features themselves, in float32: 410 MB for 50,000 times 2,048.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mvar_models.distributed import Processes
from mvar_models.evaluation.features.network import FeatureNetwork, FeatureOutputs
from mvar_models.evaluation.image_sets import ImageSet, batches
from mvar_models.evaluation.scores import InceptionScore, Moments
from mvar_models.sampling.progress import counting

# Takes the name of a set, its images that this process has done, and those it has to do.


@dataclass
class Summary:
    """A set of images as a feature network sees it.

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
        weights: Identifies the network's weights, as its own attribute does.
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


class _Statistics:
    """Running statistics of the images that one process has seen."""

    def __init__(self) -> None:
        self.count = 0
        self.moments: Moments | None = None
        self.spatial: Moments | None = None
        self.score: InceptionScore | None = None
        self.kept: list[tuple[np.ndarray, np.ndarray]] = []

    def update(self, images: ImageSet, indices: np.ndarray, outputs: FeatureOutputs, keep: bool) -> None:
        self.count += len(indices)
        self.moments = self.moments or Moments(outputs.features.shape[1])
        self.moments.update(outputs.features)
        if outputs.spatial is not None:
            self.spatial = self.spatial or Moments(outputs.spatial.shape[1])
            self.spatial.update(outputs.spatial)
        if outputs.logits is not None:
            self.score = self.score or InceptionScore(len(images), images.labels)
            self.score.update(outputs.logits, indices)
        if keep:
            self.kept.append((indices, outputs.features.cpu().numpy()))

    def merge(self, other: _Statistics) -> None:
        """Take in the images of another process."""
        self.count += other.count
        self.kept += other.kept
        for name in ("moments", "spatial", "score"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine is None:
                setattr(self, name, theirs)
            elif theirs is not None:
                mine.merge(theirs)


def summarize(
    images: ImageSet,
    network: FeatureNetwork,
    *,
    batch_size: int = 32,
    keep: bool = True,
    processes: Processes | None = None,
) -> Summary | None:
    """Run a feature network over a set of images.

    Args:
        images: The set.
        network: The feature network.
        batch_size: Images at a time.
        keep: Also keep the features.
        processes: Those that share the work. Default: this one alone.

    Returns:
        The summary on rank 0, None elsewhere.

    Raises:
        ValueError: there are fewer than two images that can be read.
    """
    processes, mine = processes or Processes(), _Statistics()
    with processes.raising_together():
        for indices, outputs in features_of(images, network, batch_size, processes):
            mine.update(images, indices, outputs, keep)
    parts = processes.gather(mine)
    if not parts:
        return None
    images.log_problems()
    whole = parts[0]
    for part in parts[1:]:
        whole.merge(part)
    if whole.count < 2 or whole.moments is None:
        raise ValueError(f"{images.name} must have at least 2 images, got {whole.count}")
    features, indices, labels = None, np.arange(whole.count), None
    if keep:
        indices, vectors = (np.concatenate(each) for each in zip(*whole.kept))
        order = np.argsort(indices)
        features, indices = torch.from_numpy(vectors[order]), indices[order]
        labels = None if images.labels is None else images.labels[indices]
    return Summary(
        images.name,
        network.name,
        whole.count,
        whole.moments,
        whole.spatial,
        whole.score,
        features,
        indices,
        labels,
        images.class_names,
        images.size,
        images.digest,
        network.weights,
        network.dtype_name,
        images,
    )


def features_of(
    images: ImageSet,
    network: FeatureNetwork,
    batch_size: int,
    processes: Processes,
) -> Iterator[tuple[np.ndarray, FeatureOutputs]]:
    """Yield the indices (n,) of this process's batches, and a feature network's outputs for their images."""
    with counting(f"features of {images.name}", -(-len(images) // processes.world_size)) as meter:
        for indices, batch in batches(images, batch_size, processes):
            yield indices, network(torch.from_numpy(np.require(batch, requirements=["C", "W"])))
            meter.advance(len(indices))
