"""The weights of Inception: a state dict of pytorch-fid or torch-fidelity, or the frozen TensorFlow graph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mvar_models.checkpoints.read_tensors import read_state
from mvar_models.evaluation.features.graph_def import read_graph
from mvar_models.evaluation.features.inception_layout import EPSILON, tf_scopes
from mvar_models.evaluation.features.inception_network import InceptionV3
from mvar_models.evaluation.features.weights import WeightsFile, check_state

STATE_DICT = WeightsFile(
    features="inception-tf",
    name="pt_inception-2015-12-05-6726825d.pth",
    url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth",
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    size=95_628_359,
)
_GRAPH_SUFFIX = ".pb"
_BATCH_NORM = "BatchNormWithGlobalNormalization"
# Part of batch norm in a state dict, and the constant of the graph.
_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
_TORCHVISION_CLASSES = 1000


def load_inception(path: Path) -> InceptionV3:
    """Load the network on the CPU in float32.

    Args:
        path: `pt_inception-2015-12-05-6726825d.pth` or another file of that state dict, or
            `classify_image_graph_def.pb`.

    Raises:
        ValueError: in one line, what the file is instead.
    """
    with torch.device("meta"):
        network = InceptionV3()
    shapes = state_shapes(network)
    state = graph_state(path, shapes) if path.suffix == _GRAPH_SUFFIX else _read_state(path, shapes)
    network.load_state_dict(fold(state), assign=True)
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]  # torch's annotation lacks it


def state_shapes(network: InceptionV3) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a state dict with unfolded batch norms."""
    shapes = {}
    for layer in tf_scopes():
        weight = network.layer(layer).weight
        shapes[f"{layer}.conv.weight"] = tuple(weight.shape)
        shapes |= {f"{layer}.bn.{part}": (weight.shape[0],) for part in _NORM}
    return {**shapes, "fc.weight": tuple(network.fc.weight.shape)}


def fold(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fold every batch norm into its convolution, in float64, and return the state dict of `InceptionV3`."""
    folded = {"fc.weight": state["fc.weight"].float()}
    for layer in tf_scopes():
        gamma, beta, mean, variance = (state[f"{layer}.bn.{part}"].double() for part in _NORM)
        factor = gamma / (variance + EPSILON).sqrt()
        weight = state[f"{layer}.conv.weight"].double() * factor[:, None, None, None]
        folded[f"{layer}.weight"] = weight.float()
        folded[f"{layer}.bias"] = (beta - mean * factor).float()
    return folded


def graph_state(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Read a state dict of those shapes out of the frozen TensorFlow graph.

    Kernels lie there as (height, width, in, out), and a batch norm without `scale_after_normalization` has no
    gamma, whatever constant of that name lies beside it.

    Raises:
        ValueError: in one line, what the file is instead.
    """
    graph = read_graph(path)
    state = {}
    for layer, scope in tf_scopes().items():
        outputs, inputs, height, width = shapes[f"{layer}.conv.weight"]
        kernel = graph.constant(f"{scope}/conv2d_params", (height, width, inputs, outputs))
        state[f"{layer}.conv.weight"] = torch.from_numpy(kernel).permute(3, 2, 0, 1)
        norm = f"{scope}/batchnorm"
        epsilon = graph.number(norm, _BATCH_NORM, "variance_epsilon")
        if abs(epsilon - EPSILON) > 1e-9:
            raise ValueError(f"{path} is another graph: {norm!r} has epsilon {epsilon:g}, expected {EPSILON}")
        for part, constant in _NORM.items():
            state[f"{layer}.bn.{part}"] = torch.from_numpy(graph.constant(f"{norm}/{constant}", (outputs,)))
        if not graph.flag(norm, _BATCH_NORM, "scale_after_normalization"):
            state[f"{layer}.bn.weight"] = torch.ones(outputs)
    classes, width = shapes["fc.weight"]
    state["fc.weight"] = torch.from_numpy(graph.constant("softmax/weights", (width, classes))).T
    return state


def _read_state(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    state = read_state(path)
    head = state.get("fc.weight")
    if isinstance(head, Tensor) and head.shape[:1] == (_TORCHVISION_CLASSES,):
        raise ValueError(
            f"{path} is torchvision's Inception ({_TORCHVISION_CLASSES:,} classes), which is another network "
            f"than the one that FID is defined by; get {STATE_DICT.name}"
        )
    return check_state(state, shapes, path, "the Inception of the 2015 TensorFlow graph")
