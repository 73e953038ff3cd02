"""Convert Inception's frozen TensorFlow graph into the state dict that the features `inception-tf` read.

    python scripts/inception_from_graph.py classify_image_graph_def.pb inception-2015-12-05.safetensors

Needs `pip install tensorboard`, which brings the protocol buffers of graphs; TensorFlow is not needed, and
nothing of the file is executed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.util.tensor_util import make_ndarray
from torch import Tensor

from mvar_models.evaluation.features.inception import BLOCKS, EPSILON, STEM

# Part of batch norm in a state dict, and the constant of the graph.
_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


def scopes() -> dict[str, str]:
    """Return the scope of each layer in the graph: "Mixed_6d.branch1x1" is "mixed_6/conv"."""
    names = {unit.name: scope for unit, scope in zip(STEM, _numbered("conv", len(STEM)))}
    for block, scope in zip(BLOCKS, _numbered("mixed", len(BLOCKS))):
        branches = [branch for branch in BLOCKS[block] if branch.units]
        towers = [f"{scope}/{tower}" for tower in _numbered("tower", len(branches))]
        # A branch of one layer comes first, outside the towers, in all blocks but the one that has none.
        insides = towers if block == "Mixed_7a" else [scope, *towers]
        for branch, inside in zip(branches, insides):
            for unit, name in zip(branch.units, _numbered("conv", len(branch.units))):
                names[f"{block}.{unit.name}"] = f"{inside}/{name}"
            for unit, name in zip(branch.fork, _numbered("conv", len(branch.fork))):
                names[f"{block}.{unit.name}"] = f"{inside}/mixed/{name}"
    return names


def _numbered(name: str, count: int) -> list[str]:
    """Return TensorFlow's names for several things of one name: conv, conv_1, conv_2."""
    return [name if index == 0 else f"{name}_{index}" for index in range(count)]


def state_of(graph: GraphDef) -> dict[str, Tensor]:
    """Return the state dict of pytorch-fid that holds the graph's numbers.

    Kernels lie in the graph as (height, width, in, out), and a batch norm without `scale_after_normalization`
    has no gamma, whatever constant of that name lies beside it.

    Raises:
        ValueError: it is another graph.
    """
    nodes = {node.name: node for node in graph.node}

    def constant(name: str) -> Tensor:
        if name not in nodes:
            raise ValueError(f"the graph has no node {name!r}: it is cut short or another graph")
        return torch.from_numpy(make_ndarray(nodes[name].attr["value"].tensor).copy())

    state = {}
    for layer, scope in scopes().items():
        state[f"{layer}.conv.weight"] = constant(f"{scope}/conv2d_params").permute(3, 2, 0, 1).contiguous()
        for part, name in _NORM.items():
            state[f"{layer}.bn.{part}"] = constant(f"{scope}/batchnorm/{name}")
        norm = nodes[f"{scope}/batchnorm"].attr
        epsilon = norm["variance_epsilon"].f
        if abs(epsilon - EPSILON) > 1e-9:
            raise ValueError(f"another graph: {scope}/batchnorm has epsilon {epsilon:g}, expected {EPSILON}")
        if not norm["scale_after_normalization"].b:
            state[f"{layer}.bn.weight"] = torch.ones_like(state[f"{layer}.bn.weight"])
    state["fc.weight"] = constant("softmax/weights").T.contiguous()
    return state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("graph", type=Path, help="classify_image_graph_def.pb")
    parser.add_argument("out", type=Path, help="safetensors file to write")
    arguments = parser.parse_args()
    save_file(state_of(GraphDef.FromString(arguments.graph.read_bytes())), arguments.out)
    print(f"{arguments.out}: `mvar evaluate --features inception-tf --weights {arguments.out}`")


if __name__ == "__main__":
    main()
