"""The table of feature networks, and what each of them offers.

A new one is a file of this folder with a subclass of `FeatureNetwork`, and one row of `FEATURES`. `Pixels`,
which is no network, stands here.
"""

from __future__ import annotations

import abc
import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mvar_models.devices import checked_device
from mvar_models.registry import resolve

FEATURES: dict[str, str] = {
    "efficientnet-lite0": "mvar_models.evaluation.features.efficientnet_lite:EfficientNetLite0",
    "dinov2": "mvar_models.evaluation.features.dinov2:DINOv2",
    "inception-tf": "mvar_models.evaluation.features.inception:InceptionTF",
    "pixels": "mvar_models.evaluation.features.network:Pixels",
}
DEFAULT_FEATURES = "efficientnet-lite0"


@dataclass(frozen=True)
class FeatureOutputs:
    """Outputs of a feature network for n images.

    Attributes:
        features: (n, D) float32, which all distances are measured in.
        spatial: (n, 2023) float32 for sFID; None where the network has no such layer.
        logits: (n, classes) float32 for the Inception score, without the bias; None without a classifier.
    """

    features: Tensor
    spatial: Tensor | None = None
    logits: Tensor | None = None


class FeatureNetwork(abc.ABC):
    """Turns images into feature vectors. The outputs of an image do not depend on the others of its batch.

    A subclass is made with the keyword arguments of `feature_network`, after the name.

    Attributes:
        name: Its row in `FEATURES`.
        distance: Name of a Frechet distance of its features; "FID" is that of `inception-tf` alone.
        dimension: Length D of a feature vector; None where it depends on the size of the images.
        weights: Identifies its weights, such as the digest of their file; "" without weights.
        device: Where it runs.
        dtype: Type it computes in.
    """

    name: str
    distance: str
    dimension: int | None
    weights = ""

    def __init__(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.device, self.dtype = torch.device(device), dtype

    @torch.no_grad()
    def __call__(self, images: Tensor) -> FeatureOutputs:
        """Compute the outputs of images (n, H, W, 3) of uint8.

        Raises:
            ValueError: they are something else; the message says what came.
        """
        if images.dtype != torch.uint8:
            came = str(images.dtype).removeprefix("torch.")
            raise ValueError(f"images must be uint8 from 0 to 255, got {came}")
        if images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape[1:]:
            raise ValueError(f"images must be (n, H, W, 3), got {tuple(images.shape)}")
        if len(images):
            return self._outputs(images)
        one = self._outputs(images.new_zeros(1, *images.shape[1:]))
        return FeatureOutputs(
            one.features[:0],
            None if one.spatial is None else one.spatial[:0],
            None if one.logits is None else one.logits[:0],
        )

    @abc.abstractmethod
    def _outputs(self, images: Tensor) -> FeatureOutputs:
        """Compute the outputs of one image or more, which are on any device."""

    @property
    def dtype_name(self) -> str:
        """The type that it computes in, as in "float32"."""
        return str(self.dtype).removeprefix("torch.")

    def check_agrees(
        self,
        features: str | FeatureNetwork | None,
        dtype: torch.dtype | None,
        weights: str | os.PathLike[str] | None,
        how: str,
    ) -> None:
        """Check that arguments, which would be ignored, do not contradict this network.

        Args:
            features, dtype, weights: As for `evaluate`; None is not given.
            how: How the network came, for the message.

        Raises:
            ValueError: they do.
        """
        if isinstance(features, FeatureNetwork):
            mine, other = ((each.name, each.dtype_name, each.weights) for each in (self, features))
            if mine != other:
                raise ValueError(
                    f"features: {how} with another network ({self.name} in {self.dtype_name}), got "
                    f"{features.name} in {features.dtype_name}; leave it out, or prepare it with this one"
                )
        for name, value, ready in (
            ("features", getattr(features, "name", features), self.name),
            ("dtype", None if dtype is None else str(dtype).removeprefix("torch."), self.dtype_name),
            ("weights", weights, None),
        ):
            if value is not None and value != ready:
                raise ValueError(
                    f"{name}: {how} with {self.name} in {self.dtype_name}, got {value}; leave it out, or "
                    "make another network with it"
                )


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


_SIDE = 16


class Pixels(FeatureNetwork):
    """Images of up to 16 x 16 pixels flattened as they are; larger ones averaged down to 16 x 16 first.

    Args:
        device: Where it runs.
        dtype: Must be float32: a pixel's 256 values do not fit the others.
        weights: Must be None.
    """

    name = "pixels"
    distance = "FD-pixels"
    dimension = None

    def __init__(
        self,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        weights: str | os.PathLike[str] | None = None,
    ) -> None:
        if weights is not None:
            raise ValueError(f"weights: the features 'pixels' have none, got {os.fspath(weights)!r}")
        if dtype is not torch.float32:
            raise ValueError(f"dtype must be float32 for the features 'pixels', got {dtype}")
        super().__init__(device, dtype)

    def _outputs(self, images: Tensor) -> FeatureOutputs:
        values = images.to(self.device).permute(0, 3, 1, 2).float()
        if max(values.shape[2:]) > _SIDE:
            values = F.interpolate(values, (_SIDE, _SIDE), mode="area")
        return FeatureOutputs(values.permute(0, 2, 3, 1).flatten(1))
