"""The table of feature networks, and what each of them offers.

A new one is a file of this folder with a class that keeps to `FeatureNetwork`, and one row of `FEATURES`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from mvar_models.devices import checked_device
from mvar_models.registry import resolve

FEATURES: dict[str, str] = {
    "efficientnet-lite0": "mvar_models.evaluation.features.efficientnet_lite:EfficientNetLite0",
    "dinov2": "mvar_models.evaluation.features.dinov2:DINOv2",
    "inception-tf": "mvar_models.evaluation.features.inception:InceptionTF",
    "pixels": "mvar_models.evaluation.features.pixels:Pixels",
}
DEFAULT_FEATURES = "efficientnet-lite0"


@dataclass(frozen=True)
class FeatureOutputs:
    """What a feature network says about n images.

    Attributes:
        features: (n, D) float32, which all distances are measured in.
        spatial: (n, 2023) float32 for sFID; None where the network has no such layer.
        logits: (n, classes) float32 for the Inception score, without the bias; None without a classifier.
    """

    features: Tensor
    spatial: Tensor | None = None
    logits: Tensor | None = None


class FeatureNetwork(Protocol):
    """Turns images into feature vectors. The outputs of an image do not depend on the others of its batch.

    It is made with the keyword arguments of `feature_network`, after the name.

    Attributes:
        name: Its row in `FEATURES`.
        distance: What a Frechet distance of its features is called; "FID" is that of `inception-tf` alone.
        dimension: Length D of a feature vector; None where it depends on the size of the images.
        weights: What identifies its weights, such as the digest of their file; "" without weights.
    """

    name: str
    distance: str
    dimension: int | None
    weights: str

    def __call__(self, images: Tensor, /) -> FeatureOutputs:
        """Compute the outputs of images (n, H, W, 3) of uint8, on the network's device."""


def feature_network(
    name: str = DEFAULT_FEATURES,
    *,
    device: torch.device | str | int | None = None,
    dtype: torch.dtype = torch.float32,
    weights: str | os.PathLike[str] | None = None,
) -> FeatureNetwork:
    """Load a feature network.

    Args:
        name: A row of `FEATURES`.
        device: Where it runs; None is the CPU.
        dtype: Type it computes in; its outputs are float32 whatever it is.
        weights: File of its weights, for a network whose weights are not installed with a package; "download"
            to fetch them, where the network knows a place.

    Raises:
        ValueError: no network of that name, or an argument does not fit it.
        ImportError: the packages that it needs are not installed.
    """
    if name not in FEATURES:
        raise ValueError(f"features must be one of {', '.join(FEATURES)}, got {name!r}")
    make: Any = resolve(FEATURES[name])
    network: FeatureNetwork = make(device=checked_device(device), dtype=dtype, weights=weights)
    return network


def check_images(images: Tensor) -> None:
    """Check that images are uint8 (n, H, W, 3).

    Raises:
        ValueError: they are not; the message says what came.
    """
    if images.dtype != torch.uint8:
        raise ValueError(
            f"images must be uint8 from 0 to 255, got {str(images.dtype).removeprefix('torch.')}"
        )
    if images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape[1:]:
        raise ValueError(f"images must be (n, H, W, 3), got {tuple(images.shape)}")


def dtype_name(network: FeatureNetwork) -> str:
    """Return the type that a network computes in; one that does not say computes in float32."""
    return str(getattr(network, "dtype", torch.float32)).removeprefix("torch.")


def check_ready(
    network: FeatureNetwork,
    features: str | FeatureNetwork | None,
    dtype: torch.dtype | None,
    weights: str | os.PathLike[str] | None,
    how: str,
) -> None:
    """Check that arguments do not contradict a network that is ready.

    Args:
        network: The network.
        features, dtype, weights: As for `feature_network`; None is not given.
        how: How the network came, for the message.

    Raises:
        ValueError: they do, and would be ignored.
    """
    if features is not None and not isinstance(features, str) and features is not network:
        same = (features.name, dtype_name(features), features.weights) == (
            network.name, dtype_name(network), network.weights,
        )  # fmt: skip
        if not same:
            raise ValueError(
                f"features: {how} with another network ({network.name} in {dtype_name(network)}), got "
                f"{features.name} in {dtype_name(features)}; leave it out, or prepare it with this one"
            )
    for name, value, ready in (
        ("features", getattr(features, "name", features), network.name),
        ("dtype", None if dtype is None else str(dtype).removeprefix("torch."), dtype_name(network)),
        ("weights", weights, None),
    ):
        if value is not None and value != ready:
            raise ValueError(
                f"{name}: {how} with {network.name} in {dtype_name(network)}, got {value}; leave it out, or "
                "make another network with it"
            )
