"""Statistics of a reference set in an .npz, under the names of OpenAI's files: mu, sigma, mu_s, sigma_s.

Ours also name their network and hold the features, so that every metric can be computed against them without
an image. OpenAI's hold statistics of `inception-tf` and 10,000 images.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch

from mvar_models.data.arrays import npz_names, read_array
from mvar_models.evaluation.features.network import FeatureNetwork
from mvar_models.evaluation.image_sets import ImageSet
from mvar_models.evaluation.npz import read_class_names
from mvar_models.evaluation.open_sets import open_set
from mvar_models.evaluation.scores import Moments
from mvar_models.evaluation.summary import Summary
from mvar_models.files import file_digest, replacing

_INCEPTION = "inception-tf"
_INCEPTION_NUMBERS = 2048


def save_statistics(summary: Summary, file: str | os.PathLike[str]) -> None:
    """Write the statistics of a reference set.

    Args:
        summary: Of the set; its features are written where they were kept.
        file: The .npz to write.
    """
    spatial, features = summary.spatial, summary.features
    values = {
        "network": summary.network,
        "weights": summary.weights,
        "dtype": summary.dtype,
        "name": summary.name,
        "digest": summary.digest,
        "count": summary.count,
        "size": summary.size,
        "mu": summary.moments.mean,
        "sigma": summary.moments.covariance,
        "mu_s": None if spatial is None else spatial.mean,
        "sigma_s": None if spatial is None else spatial.covariance,
        "features": None if features is None else features.numpy(),
        "indices": None if features is None else summary.indices,
        "labels": summary.labels,
        "class_names": None if summary.labels is None else summary.class_names,
    }
    arrays: dict[str, Any] = {name: np.asarray(value) for name, value in values.items() if value is not None}
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as opened:
        np.savez(opened, **arrays)


def has_statistics(place: object) -> TypeGuard[str | os.PathLike[str]]:
    """Whether a reference is an .npz with statistics."""
    if not isinstance(place, str | os.PathLike):
        return False
    path = Path(place)
    return path.suffix == ".npz" and path.exists() and {"mu", "sigma"} <= npz_names(path)


def read_statistics(
    file: str | os.PathLike[str], network: FeatureNetwork
) -> tuple[Summary | None, ImageSet | None]:
    """Read statistics, and the images that lie beside them.

    Args:
        file: An .npz with mu and sigma.
        network: The network that will be compared with them.

    Returns:
        The summary, None if it is of another network, of other weights or another type; and the images, None
        if there are none.

    Raises:
        ValueError: it is damaged, or of another network and without images.
    """
    path = Path(file)
    names = npz_names(path)
    images = open_set(path) if "arr_0" in names else None
    moments = _moments(path, "mu", "sigma", _count(path) if "count" in names else None)

    def said(name: str) -> str:
        return str(read_array(path, name, "SU", ())) if name in names else ""

    known = said("network")
    origin = known or (_INCEPTION if moments.dimension == _INCEPTION_NUMBERS else "an unknown network")
    # OpenAI's files do not say which weights, in which type.
    now = {"weights": network.weights, "dtype": network.dtype_name}
    other = [name for name, value in now.items() if name in names and said(name) != value]
    wrong = network.dimension is not None and network.dimension != moments.dimension
    if origin != network.name or wrong or other:
        if images is not None:
            return None, images
        raise ValueError(
            f"{file} holds statistics of {_listed(origin, map(said, other))} "
            f"({moments.dimension:,} numbers), "
            f"not of {_listed(network.name, (now[name] for name in other))}: "
            "evaluate with those features, or name the images"
        )
    spatial = _moments(path, "mu_s", "sigma_s", moments.count) if {"mu_s", "sigma_s"} <= names else None
    summary = Summary(
        said("name") or str(file),
        network.name,
        moments.count,
        moments,
        spatial,
        digest=file_digest(path),
        weights=network.weights,
        dtype=network.dtype_name,
    )
    if "size" in names:
        height, width = (int(side) for side in read_array(path, "size", "iu", (2,)))
        summary.size = (height, width)
    if "features" in names:
        features = read_array(path, "features", "f", (None, moments.dimension)).astype(np.float32)
        summary.features, number = torch.from_numpy(features), len(features)
        summary.indices = (
            read_array(path, "indices", "iu", (number,)) if "indices" in names else np.arange(number)
        )
        if "labels" in names:
            summary.labels = read_array(path, "labels", "iu", (number,)).astype(np.int64)
            summary.class_names = read_class_names(path, names, summary.labels)
    return summary, images


def _moments(path: Path, mean_name: str, covariance_name: str, count: int | None) -> Moments:
    mean = read_array(path, mean_name, "f", (None,))
    covariance = read_array(path, covariance_name, "f", (len(mean), len(mean)))
    if not len(mean):
        raise ValueError(f"{path}: {mean_name} holds no numbers")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError(f"{path}: {mean_name} or {covariance_name} has numbers that are not finite")
    if not np.allclose(covariance, covariance.T, rtol=1e-3, atol=1e-3 * abs(covariance).max()):
        raise ValueError(f"{path}: {covariance_name} is not symmetric, so no covariance")
    return Moments.ready(mean, covariance, count)


def _count(path: Path) -> int:
    count = int(read_array(path, "count", "iu", ()))
    if count < 2:
        raise ValueError(f"{path}: count must be at least 2 images, got {count}")
    return count


def _listed(network: str, more: Iterable[str]) -> str:
    return ", ".join([network, *(each[:16] or "no weights" for each in more)])
