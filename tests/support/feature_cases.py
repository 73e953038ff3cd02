"""Small sets and feature networks for tests of evaluation."""

import numpy as np
import torch
from torch import Tensor

from mvar_models.evaluation.features.inception import InceptionV3, state_shapes
from mvar_models.evaluation.features.network import FeatureOutputs, Pixels


def random_images(count, side=4, seed=0, low=0, high=256):
    return np.random.default_rng(seed).integers(low, high, (count, side, side, 3), dtype=np.uint8)


class Toy(Pixels):
    """Pixels that also give spatial features and logits, as Inception does."""

    name = "toy"
    distance = "FD-toy"

    def __call__(self, images):
        features = super().__call__(images).features
        return FeatureOutputs(features, features[:, :7], features[:, :5] / 50)


class Greedy(Pixels):
    """Pixels that draw from torch's generator, as a network that initialises its weights does."""

    name = "greedy"

    def __call__(self, images):
        torch.rand(3)
        return super().__call__(images)


class Typed(Pixels):
    """Pixels that take any type."""

    name = "typed"

    def __init__(self, *, device="cpu", dtype=torch.float32, weights=None):
        super().__init__(device=device, weights=weights)
        self.dtype = dtype


def toy():
    return Toy(device=torch.device("cpu"))


def random_state(seed: int) -> dict[str, Tensor]:
    """Weights under which every map keeps its size, with batch norms that do something."""
    draw = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = state_shapes(InceptionV3())
    state = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=draw)
        if name.endswith("conv.weight"):
            values *= (2 / values[0].numel()) ** 0.5
        elif name.endswith(("running_var", "bn.weight")):
            values = 0.5 + torch.rand(shape, generator=draw)
        elif name == "fc.weight":
            values *= 0.02
        else:
            values *= 0.1
        state[name] = values
    return {**state, "fc.bias": torch.randn(len(state["fc.weight"]), generator=draw)}
