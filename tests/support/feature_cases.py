"""Small sets and feature networks for tests of evaluation."""

import numpy as np
import torch

from mvar_models.evaluation.features.network import FeatureOutputs
from mvar_models.evaluation.features.pixels import Pixels


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
