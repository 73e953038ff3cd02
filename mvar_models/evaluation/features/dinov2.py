"""DINOv2 ViT-L/14 features, as dgm-eval takes them (Stein et al., arXiv 2306.04675).

The network is this project's own, so the released weights are read without running the code that torch.hub
would fetch with them.
"""

from __future__ import annotations

import os

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mvar_models.checkpoints.tensor_files import read_state
from mvar_models.evaluation.features.network import FeatureOutputs, check_images
from mvar_models.evaluation.features.vit import VisionTransformer
from mvar_models.evaluation.features.weights import WeightsFile, check_state, find_weights
from mvar_models.files import file_digest

WEIGHTS = WeightsFile(
    features="dinov2",
    name="dinov2_vitl14_pretrain.pth",
    url="https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
    sha256="d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
    size=1_217_586_395,
)
_SIDE = 224
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_WIDTH = 1024


def vit_large() -> VisionTransformer:
    """Return the network of the released ViT-L/14, which was trained for 518 px: 37 patches a side."""
    return VisionTransformer(width=_WIDTH, depth=24, num_heads=16, patch_size=14, grid=37)


class DINOv2:
    """The class token of DINOv2's ViT-L/14: 1,024 numbers from images of 224 x 224.

    Images are resized by Pillow's bicubic filter in 8 bits, then normalised with ImageNet's mean and
    deviation.

    Args:
        device: Where it runs.
        dtype: Type it computes in.
        weights: `dinov2_vitl14_pretrain.pth`, or "download"; None is what an earlier download left in
            PyTorch's cache.

    Raises:
        FileNotFoundError: no such file, or none in the cache.
        ValueError: the file is another one.
    """

    name = "dinov2"
    distance = "FD-DINOv2"
    dimension = _WIDTH

    def __init__(
        self,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        weights: str | os.PathLike[str] | None = None,
    ) -> None:
        file = find_weights(WEIGHTS, weights)
        with torch.device("meta"):
            network = vit_large()
        shapes = {name: tuple(values.shape) for name, values in network.state_dict().items()}
        state = check_state(read_state(file), shapes, file, "DINOv2's ViT-L/14")
        network.load_state_dict(state, assign=True)
        self._network = network.eval().requires_grad_(False).to(device, dtype)
        self.device, self.dtype = torch.device(device), dtype
        self.weights = file_digest(file)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> FeatureOutputs:
        check_images(images)
        if not len(images):
            return FeatureOutputs(torch.empty(0, self.dimension, dtype=torch.float32, device=self.device))
        values = prepared(images).to(self.device, self.dtype)
        return FeatureOutputs(self._network(values).float())


def prepared(images: Tensor) -> Tensor:
    """Resize images (n, H, W, 3) of uint8 to 224 x 224 and normalise them: (n, 3, 224, 224) float32."""
    resized = [
        np.asarray(Image.fromarray(image).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC))
        for image in images.cpu().numpy()
    ]
    values = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float() / 255
    mean, deviation = (
        torch.tensor(each, dtype=torch.float32, device="cpu")[:, None, None] for each in (_MEAN, _DEVIATION)
    )
    return (values - mean) / deviation
