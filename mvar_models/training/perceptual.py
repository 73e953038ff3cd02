"""Perceptual losses of the VQVAE: distances between the features of images and of their reconstructions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvar_models.evaluation.features.efficientnet_lite import load_network, normalised
from mvar_models.optional import require

# Half the side that the network was trained at. At 64 px its last blocks would see 2 x 2 positions, at 224 px
# the loss would cost four times as much.
_LEAST_SIDE = 112


class LPIPS(nn.Module):
    """LPIPS (arXiv 1801.03924), averaged over images. Its first use downloads the weights of VGG16.

    Raises:
        ImportError: the extra `perceptual` is not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        lpips = require("lpips", "perceptual")
        self.network = lpips.LPIPS(net="vgg", verbose=False).eval().requires_grad_(False)

    def forward(self, images: Tensor, originals: Tensor) -> Tensor:
        """Return a scalar for two batches (n, 3, R, R) in [-1, 1]."""
        with torch.autocast(images.device.type, enabled=False):
            distance: Tensor = self.network(images.float(), originals.float()).mean()
        return distance


class EfficientNetDistance(nn.Module):
    """Distance between features of EfficientNet-Lite0, whose weights come inside a package.

    As in LPIPS, the features of every position are scaled to length 1 and their squared differences averaged
    over positions; the mean over the ends of the seven stages replaces LPIPS's learned weights.

    Raises:
        ImportError: the packages of the extra `evaluate` are not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.network: Any = load_network()[0].eval().requires_grad_(False)
        blocks = list(self.network._blocks)
        # A stage ends where the channels change.
        channels = [block._block_args.output_filters for block in blocks]
        self.ends = [i for i in range(len(blocks)) if i + 1 == len(blocks) or channels[i] != channels[i + 1]]

    def train(self, mode: bool = True) -> EfficientNetDistance:
        """Stay in eval mode: the running statistics of batch norm are part of the distance."""
        return super().train(False)

    def forward(self, images: Tensor, originals: Tensor) -> Tensor:
        """Return a scalar for two batches (n, 3, R, R) in [-1, 1]; gradients reach `images` alone."""
        with torch.autocast(images.device.type, enabled=False):
            with torch.no_grad():
                wanted = self._features(originals.float())
            found = self._features(images.float())
        distances = [(one - other).square().sum(1).mean() for one, other in zip(found, wanted)]
        return torch.stack(distances).mean()

    def _features(self, images: Tensor) -> list[Tensor]:
        values = normalised((images + 1) * 127.5)
        if values.shape[-1] < _LEAST_SIDE:
            values = F.interpolate(values, (_LEAST_SIDE, _LEAST_SIDE), mode="bilinear")
        hidden = self.network._swish(self.network._bn0(self.network._conv_stem(values)))
        features = []
        for i, block in enumerate(self.network._blocks):
            hidden = block(hidden)
            if i in self.ends:
                features.append(F.normalize(hidden, dim=1))
        return features


PERCEPTUAL: dict[str, type[nn.Module]] = {"lpips": LPIPS, "efficientnet-lite0": EfficientNetDistance}
