"""Inception with random weights: state dicts as published, and the TF graph of the same weights."""

import numpy as np
import torch
from torch import Tensor

from mvar_models.evaluation.features.inception_layout import tf_scopes
from mvar_models.evaluation.features.inception_network import InceptionV3
from mvar_models.evaluation.features.inception_weights import state_shapes

from tf_graph_cases import batch_norm, constant, node, versions

NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


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


def encoded_graph(state: dict[str, Tensor], scale: bool = True) -> bytes:
    """The weights as a frozen graph, with what else such a graph holds around them."""
    parts = [node("DecodeJpeg/contents", "Const"), node("ExpandDims", "ExpandDims", ("Cast",))]
    for layer, scope in tf_scopes().items():
        parts.append(
            constant(f"{scope}/conv2d_params", as_array(state[f"{layer}.conv.weight"].permute(2, 3, 1, 0)))
        )
        parts += [
            constant(f"{scope}/batchnorm/{name}", as_array(state[f"{layer}.bn.{part}"]))
            for name, part in NORM.items()
        ]
        parts.append(batch_norm(f"{scope}/batchnorm", scale=scale))
    parts.append(constant("softmax/weights", as_array(state["fc.weight"].T)))
    parts.append(constant("softmax/biases", as_array(state["fc.bias"])))
    return b"".join([*parts, versions()])


def as_array(values: Tensor) -> np.ndarray:
    return np.ascontiguousarray(values.numpy())
