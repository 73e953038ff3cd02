"""Inception with random weights, as a state dict with batch norms."""

import torch
from torch import Tensor

from mvar_models.evaluation.features.inception import InceptionV3, state_shapes


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
