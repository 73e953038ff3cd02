"""Inception v3 of the 2015 TensorFlow graph, whose features define the Frechet Inception Distance.

The network (Szegedy et al., arXiv 1512.00567) differs from torchvision's in three places: 1,008 classes,
average pools that leave the padding out, and a max pool in the last block. It resizes images itself by
TensorFlow 1's rule; images that were resized by another rule give another FID. Layers have the names of
pytorch-fid's state dict. The weights are a file that the user names, or a download that the user asks for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.backends import cudnn

from mvar_models.checkpoints.tensor_files import read_state
from mvar_models.devices import without_values
from mvar_models.evaluation.features.network import FeatureNetwork, FeatureOutputs
from mvar_models.evaluation.features.weights import WeightsFile, check_state, find_weights
from mvar_models.files import file_digest

STATE_DICT = WeightsFile(
    features="inception-tf",
    name="pt_inception-2015-12-05-6726825d.pth",
    url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth",
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    size=95_628_359,
)
CLASSES = 1008
FEATURES = 2048
SIDE = 299
# sFID takes the first 7 channels (17 x 17) of mixed_6/conv, which is the first branch of this block.
_SPATIAL_BLOCK, _SPATIAL_CHANNELS = "Mixed_6d", 7
# Batch norm's epsilon in every layer, and its parts in a state dict.
EPSILON = 0.001
_NORM = ("weight", "bias", "running_mean", "running_var")
_TORCHVISION_CLASSES = 1000


class InceptionTF(FeatureNetwork):
    """Inception v3 of the 2015 TensorFlow graph: `pool_3`, `mixed_6/conv` for sFID, and logits without bias.

    Args:
        device: Where it runs.
        dtype: Type of the convolutions. float32 is exact on a GPU as well: TF32 is turned off.
        weights: `pt_inception-2015-12-05-6726825d.pth`, or "download"; None is what an earlier download left
            in PyTorch's cache.

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
        super().__init__(device, dtype)
        self.weights = file_digest(file)

    def _outputs(self, images: Tensor) -> FeatureOutputs:
        values = images.to(self.device).permute(0, 3, 1, 2)
        # PyTorch convolves float32 in TF32 on GPUs unless told otherwise.
        with cudnn.flags(
            enabled=True, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False
        ):
            return self._network(values)


def load_inception(path: Path) -> InceptionV3:
    """Load the network on the CPU in float32.

    Args:
        path: `pt_inception-2015-12-05-6726825d.pth` or another file of that state dict.

    Raises:
        ValueError: in one line, what the file is instead.
    """
    if path.suffix == ".pb":
        raise ValueError(
            f"{path} is a TensorFlow graph; convert it with scripts/inception_from_graph.py first"
        )
    with without_values():
        network = InceptionV3()
    state = read_state(path)
    head = state.get("fc.weight")
    if isinstance(head, Tensor) and head.shape[:1] == (_TORCHVISION_CLASSES,):
        raise ValueError(
            f"{path} is torchvision's Inception ({_TORCHVISION_CLASSES:,} classes), which is another network "
            f"than the one that FID is defined by; get {STATE_DICT.name}"
        )
    state = check_state(state, state_shapes(network), path, "the Inception of the 2015 TensorFlow graph")
    network.load_state_dict(fold(state), assign=True)
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]  # torch's annotation lacks it


def state_shapes(network: InceptionV3) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a state dict with unfolded batch norms."""
    shapes = {}
    for layer in network.layers():
        weight = network.layer(layer).weight
        shapes[f"{layer}.conv.weight"] = tuple(weight.shape)
        shapes |= {f"{layer}.bn.{part}": (weight.shape[0],) for part in _NORM}
    return {**shapes, "fc.weight": tuple(network.fc.weight.shape)}


def fold(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fold every batch norm into its convolution, in float64, and return the state dict of `InceptionV3`."""
    folded = {"fc.weight": state["fc.weight"].float()}
    for layer in (name.removesuffix(".conv.weight") for name in state if name.endswith(".conv.weight")):
        gamma, beta, mean, variance = (state[f"{layer}.bn.{part}"].double() for part in _NORM)
        factor = gamma / (variance + EPSILON).sqrt()
        weight = state[f"{layer}.conv.weight"].double() * factor[:, None, None, None]
        folded[f"{layer}.weight"] = weight.float()
        folded[f"{layer}.bias"] = (beta - mean * factor).float()
    return folded


def tf1_resize(images: Tensor, side: int) -> Tensor:
    """Resize images bilinearly as TensorFlow 1 does: no half-pixel centres, no antialiasing.

    Pixel i of the result lies at i * H / side of the input, so the last rows and columns repeat the border.
    The arithmetic is that of TensorFlow's CPU kernel: columns first, then rows, a + (b - a) * t.

    Args:
        images: (N, C, H, W), floating point.
        side: Height and width of the result.

    Returns:
        (N, C, side, side), of the type of `images`.
    """
    below, above, weight = _neighbours(images.shape[3], side, images)
    left, right = images[..., below], images[..., above]
    across = left + (right - left) * weight
    below, above, weight = _neighbours(images.shape[2], side, images)
    top, bottom = across[:, :, below], across[:, :, above]
    return top + (bottom - top) * weight[:, None]


def _neighbours(size: int, side: int, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two input positions of each output position, and the weight of the second: (side,) each."""
    # Positions are float32 whatever the images are: 32 / 299 is rounded there, and so are its multiples.
    place = torch.arange(side, device=images.device, dtype=torch.float32) * torch.tensor(
        size / side, dtype=torch.float32, device=images.device
    )
    below = place.long().clamp_max(size - 1)
    above = (below + 1).clamp_max(size - 1)
    return below, above, (place - below).to(images.dtype)


class InceptionV3(nn.Module):
    """The network, with the batch norms folded into the convolutions before them.

    Folding is 1.2 times as fast on a CPU and moves features by less than 1e-6 of the largest.
    """

    def __init__(self) -> None:
        super().__init__()
        width = 3
        for unit in STEM:
            self.add_module(unit.name, _convolution(width, unit))
            width = unit.channels
        for name, branches in BLOCKS.items():
            block = _Block(width, branches)
            self.add_module(name, block)
            width = block.channels
        self.fc = nn.Linear(width, CLASSES, bias=False)

    def layer(self, name: str) -> nn.Conv2d:
        """Return a convolution by its name in the layout, with its block: "Mixed_6d.branch1x1"."""
        convolution = self.get_submodule(name)
        assert isinstance(convolution, nn.Conv2d)
        return convolution

    def layers(self) -> list[str]:
        """Return the names of all convolutions."""
        return [name for name, module in self.named_modules() if isinstance(module, nn.Conv2d)]

    def convolve_in(self, dtype: torch.dtype) -> InceptionV3:
        """Convert the convolutions; what follows them stays float32."""
        for name in self.layers():
            self.layer(name).to(dtype)
        return self

    def forward(self, images: Tensor) -> FeatureOutputs:
        """Compute the outputs of images (n, 3, H, W) with values from 0 to 255, of any size."""
        maps = (tf1_resize(images.float(), SIDE) - 128) / 128
        maps = maps.to(self.layer(STEM[0].name).weight.dtype)
        for unit in STEM:
            maps = F.relu(self.layer(unit.name)(maps), inplace=True)
            if unit.name in HALVED_AFTER:
                maps = F.max_pool2d(maps, 3, stride=2)
        spatial = maps
        for name in BLOCKS:
            maps = self.get_submodule(name)(maps)
            if name == _SPATIAL_BLOCK:
                spatial = maps[:, :_SPATIAL_CHANNELS]
        features = maps.float().mean((2, 3))
        return FeatureOutputs(
            features,
            # Channels last, so that statistics in the order of the TF program fit.
            spatial.permute(0, 2, 3, 1).flatten(1).float(),
            self.fc(features),
        )


def _convolution(width: int, unit: Unit) -> nn.Conv2d:
    return nn.Conv2d(width, unit.channels, unit.kernel, stride=unit.stride, padding=unit.padding)


class _Block(nn.Module):
    def __init__(self, width: int, branches: tuple[Branch, ...]) -> None:
        super().__init__()
        self.branches = branches
        self.channels = 0
        for branch in branches:
            inner = width
            for unit in branch.units:
                self.add_module(unit.name, _convolution(inner, unit))
                inner = unit.channels
            for unit in branch.fork:
                self.add_module(unit.name, _convolution(inner, unit))
            self.channels += sum(unit.channels for unit in branch.fork) or inner

    def forward(self, maps: Tensor) -> Tensor:
        return torch.cat([part for branch in self.branches for part in self._parts(branch, maps)], 1)

    def _parts(self, branch: Branch, maps: Tensor) -> list[Tensor]:
        maps = _pooled(branch.pool, maps)
        for unit in branch.units:
            maps = F.relu(self.get_submodule(unit.name)(maps), inplace=True)
        return [F.relu(self.get_submodule(unit.name)(maps), inplace=True) for unit in branch.fork] or [maps]


def _pooled(pool: str, maps: Tensor) -> Tensor:
    if pool == "average":
        # TensorFlow's average does not count the padding.
        return F.avg_pool2d(maps, 3, stride=1, padding=1, count_include_pad=False)
    if pool == "max":
        return F.max_pool2d(maps, 3, stride=1, padding=1)
    return F.max_pool2d(maps, 3, stride=2) if pool == "halve" else maps


class Unit(NamedTuple):
    """A convolution without bias, batch norm and ReLU.

    Attributes:
        name: Name of the layer.
        channels: Output channels.
        kernel: Height and width.
        stride: 1, or 2 without padding.
        padded: Whether the output keeps the input's size.
    """

    name: str
    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padded: bool = True

    @property
    def padding(self) -> tuple[int, int]:
        """Zeros on each side, per axis."""
        return (self.kernel[0] // 2, self.kernel[1] // 2) if self.padded and self.stride == 1 else (0, 0)


class Branch(NamedTuple):
    """One path through a block; the outputs of all paths lie one after the other.

    Attributes:
        units: Layers, in order.
        fork: Layers that all read the last of `units`.
        pool: What comes first: "", "average" or "max" (3 x 3 at stride 1), "halve" (max, 3 x 3 at stride 2).
    """

    units: tuple[Unit, ...] = ()
    fork: tuple[Unit, ...] = ()
    pool: str = ""


_3x3, _5x5, _1x3, _3x1, _1x7, _7x1 = (3, 3), (5, 5), (1, 3), (3, 1), (1, 7), (7, 1)

# The layers before the blocks; a max pool that halves follows those in HALVED_AFTER.
STEM = (
    Unit("Conv2d_1a_3x3", 32, _3x3, stride=2),
    Unit("Conv2d_2a_3x3", 32, _3x3, padded=False),
    Unit("Conv2d_2b_3x3", 64, _3x3),
    Unit("Conv2d_3b_1x1", 80),
    Unit("Conv2d_4a_3x3", 192, _3x3, padded=False),
)
HALVED_AFTER = ("Conv2d_2b_3x3", "Conv2d_4a_3x3")


def _chain(name: str, *layers: tuple[Any, ...]) -> tuple[Unit, ...]:
    """Return layers name_1, name_2, ... from their channels, kernels and strides."""
    return tuple(Unit(f"{name}_{number}", *layer) for number, layer in enumerate(layers, 1))


def _grid_35(pooled: int) -> tuple[Branch, ...]:
    return (
        Branch((Unit("branch1x1", 64),)),
        Branch(_chain("branch5x5", (48,), (64, _5x5))),
        Branch(_chain("branch3x3dbl", (64,), (96, _3x3), (96, _3x3))),
        Branch((Unit("branch_pool", pooled),), pool="average"),
    )


def _grid_17(narrow: int) -> tuple[Branch, ...]:
    there, back = (narrow, _1x7), (narrow, _7x1)
    return (
        Branch((Unit("branch1x1", 192),)),
        Branch(_chain("branch7x7", (narrow,), there, (192, _7x1))),
        Branch(_chain("branch7x7dbl", (narrow,), back, there, back, (192, _1x7))),
        Branch((Unit("branch_pool", 192),), pool="average"),
    )


def _grid_8(pool: str) -> tuple[Branch, ...]:
    def fork(name: str) -> tuple[Unit, ...]:
        return (Unit(f"{name}a", 384, _1x3), Unit(f"{name}b", 384, _3x1))

    return (
        Branch((Unit("branch1x1", 320),)),
        Branch(_chain("branch3x3", (384,)), fork=fork("branch3x3_2")),
        Branch(_chain("branch3x3dbl", (448,), (384, _3x3)), fork=fork("branch3x3dbl_3")),
        Branch((Unit("branch_pool", 192),), pool=pool),
    )


_TO_17 = (
    Branch((Unit("branch3x3", 384, _3x3, 2),)),
    Branch(_chain("branch3x3dbl", (64,), (96, _3x3), (96, _3x3, 2))),
    Branch(pool="halve"),
)
_TO_8 = (
    Branch(_chain("branch3x3", (192,), (320, _3x3, 2))),
    Branch(_chain("branch7x7x3", (192,), (192, _1x7), (192, _7x1), (192, _3x3, 2))),
    Branch(pool="halve"),
)

BLOCKS: dict[str, tuple[Branch, ...]] = {
    "Mixed_5b": _grid_35(32),
    "Mixed_5c": _grid_35(64),
    "Mixed_5d": _grid_35(64),
    "Mixed_6a": _TO_17,
    "Mixed_6b": _grid_17(128),
    "Mixed_6c": _grid_17(160),
    "Mixed_6d": _grid_17(160),
    "Mixed_6e": _grid_17(192),
    "Mixed_7a": _TO_8,
    "Mixed_7b": _grid_8("average"),
    "Mixed_7c": _grid_8("max"),
}
