"""Pixels as features: no weights, for tests and for tiny images."""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F
from torch import Tensor

from mvar_models.evaluation.features.network import FeatureNetwork, FeatureOutputs

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
