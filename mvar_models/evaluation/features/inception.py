"""The features that define the Frechet Inception Distance, as the evaluator of guided-diffusion takes them.

The weights are a file that the user names, or a download that the user asks for. The graph resizes images
itself; images that were resized by another rule give another FID.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor
from torch.backends import cudnn

from mvar_models.evaluation.features.inception_layout import CLASSES, FEATURES, SPATIAL
from mvar_models.evaluation.features.inception_weights import STATE_DICT, load_inception
from mvar_models.evaluation.features.network import FeatureOutputs, check_images
from mvar_models.evaluation.features.weights import digest, find_weights


class InceptionTF:
    """Inception v3 of the 2015 TensorFlow graph: `pool_3`, `mixed_6/conv` for sFID, and logits without bias.

    Args:
        device: Where it runs.
        dtype: Type of the convolutions. float32 is exact on a GPU as well: TF32 is turned off.
        weights: `pt_inception-2015-12-05-6726825d.pth`, `classify_image_graph_def.pb`, or "download" for the
            first of them; None is what an earlier download left in PyTorch's cache.

    Raises:
        FileNotFoundError: no such file, or none in the cache.
        ValueError: the file is another one.
    """

    name = "inception-tf"
    distance = "FID"
    dimension = FEATURES

    def __init__(
        self,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        weights: str | os.PathLike[str] | None = None,
    ) -> None:
        file = find_weights(STATE_DICT, weights)
        self._network = load_inception(file).to(device).convolve_in(dtype)
        self.device, self.dtype = torch.device(device), dtype
        self.weights = digest(file)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> FeatureOutputs:
        check_images(images)
        if not len(images):
            sizes = (FEATURES, SPATIAL, CLASSES)
            return FeatureOutputs(*(torch.empty(0, size, device=self.device) for size in sizes))
        values = images.to(self.device).permute(0, 3, 1, 2)
        # PyTorch convolves float32 in TF32 on GPUs unless told otherwise.
        with cudnn.flags(
            enabled=True, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False
        ):
            return self._network(values)
