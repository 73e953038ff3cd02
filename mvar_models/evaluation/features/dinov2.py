"""DINOv2 ViT-L/14 features, as dgm-eval takes them (Stein et al., arXiv 2306.04675).

The network is this project's own, so the released weights are read without running the code that torch.hub
would fetch with them.
"""

from __future__ import annotations

import os

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from mvar_models.checkpoints.tensor_files import read_state
from mvar_models.devices import without_values
from mvar_models.evaluation.features.network import FeatureNetwork, FeatureOutputs
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
_EPSILON = 1e-6
# The released program adds this to the number of patches per side before it divides, so that rounding cannot
# lose a patch. The positions are sampled at that ratio, so features depend on it.
_OFFSET = 0.1


def vit_large() -> VisionTransformer:
    """Return the network of the released ViT-L/14, which was trained for 518 px: 37 patches a side."""
    return VisionTransformer(width=_WIDTH, depth=24, num_heads=16, patch_size=14, grid=37)


class DINOv2(FeatureNetwork):
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
        with without_values():
            network = vit_large()
        shapes = {name: tuple(values.shape) for name, values in network.state_dict().items()}
        state = check_state(read_state(file), shapes, file, "DINOv2's ViT-L/14")
        network.load_state_dict(state, assign=True)
        self._network = network.eval().requires_grad_(False).to(device, dtype)
        super().__init__(device, dtype)
        self.weights = file_digest(file)

    def _outputs(self, images: Tensor) -> FeatureOutputs:
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


class VisionTransformer(nn.Module):
    """The transformer of DINOv2 (arXiv 2304.07193), with the names of its released state dicts.

    Args:
        width: Features per token.
        depth: Number of blocks.
        num_heads: Attention heads.
        patch_size: Pixels per side of a patch.
        grid: Patches per side of the images that the position embedding was trained for.
    """

    def __init__(self, *, width: int, depth: int, num_heads: int, patch_size: int, grid: int) -> None:
        super().__init__()
        self.patch_size, self.grid = patch_size, grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid * grid, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch_size, stride=patch_size)})
        self.blocks = nn.ModuleList(_Block(width, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=_EPSILON)

    def forward(self, images: Tensor) -> Tensor:
        """Return the class token (n, width) of normalised images (n, 3, H, W).

        H and W are multiples of `patch_size`.
        """
        patches = self.patch_embed["proj"](images)
        positions = self._positions(patches.shape[2], patches.shape[3])
        tokens = torch.cat(
            [self.cls_token.expand(len(images), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1
        )
        tokens = tokens + positions
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens[:, 0])

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Return the position embedding (1, 1 + rows x columns, width), sampled if the grid is another."""
        if (rows, columns) == (self.grid, self.grid):
            return self.pos_embed
        table = self.pos_embed[:, 1:].float().unflatten(1, (self.grid, self.grid)).permute(0, 3, 1, 2)
        factors = ((rows + _OFFSET) / self.grid, (columns + _OFFSET) / self.grid)
        sampled = F.interpolate(table, scale_factor=factors, mode="bicubic").flatten(2).transpose(1, 2)
        return torch.cat([self.pos_embed[:, :1], sampled.to(self.pos_embed.dtype)], dim=1)


class _Block(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(width, eps=_EPSILON)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.ls1 = nn.ParameterDict({"gamma": nn.Parameter(torch.ones(width))})
        self.norm2 = nn.LayerNorm(width, eps=_EPSILON)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})
        self.ls2 = nn.ParameterDict({"gamma": nn.Parameter(torch.ones(width))})

    def forward(self, tokens: Tensor) -> Tensor:
        qkv = self.attn["qkv"](self.norm1(tokens)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        tokens = tokens + self.ls1["gamma"] * self.attn["proj"](mixed)
        hidden = F.gelu(self.mlp["fc1"](self.norm2(tokens)))
        return tokens + self.ls2["gamma"] * self.mlp["fc2"](hidden)
