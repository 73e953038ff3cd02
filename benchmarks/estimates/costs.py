"""What a training step costs, counted: FLOPs by formula, bytes moved between products and bytes held on fake tensors.

FLOPs are those of the recomputing blocks (mvar_models/recompute.py): a test holds the formula to torch's FlopCounterMode. Bytes moved are the
inputs and outputs of every eager operation that is neither a product nor attention nor a view; torch.compile fuses many of them, so it is an
upper figure. All are split into a part that grows with the batch and a part that does not.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.core.child_jobs import loss_of
from benchmarks.core.shapes import KINDS, Shape
from benchmarks.estimates.activations import LARGE, SMALL, a_picture, blank, example, fake
from mvar_kernels.backends.triton.schedule import tables
from mvar_kernels.pyramid import Neighborhood
from mvar_models.config import TransformerConfig

_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "attention", "attention_backward")
# Of the forward kernel on most targets; counts differ little between them.
_TILE, _CHUNK = 8, 64


@dataclass(frozen=True)
class Costs:
    """A picture's and, where it says fixed, a step's. Attention's FLOPs are those of attended pairs; `overwork` is how many more tiles compute."""

    parameters: int
    product_flops: float
    attention_flops: float
    overwork: float
    moved: float
    fixed_moved: float
    held: int


@functools.cache
def costs(shape: Shape, arch: str, checkpointed: bool = False) -> Costs:
    way = "ours, checkpointed" if checkpointed else "ours"
    config = shape.config(arch)
    with fake():
        model = blank(KINDS[arch][0], config)
        held = a_picture(model, loss_of(model, way, shape.dtype), shape.dtype).bytes
        small, large = (
            moved_bytes(model, loss_of(model, way, shape.dtype), batch, shape.dtype)
            for batch in (SMALL, LARGE)
        )
        parameters = sum(parameter.numel() for parameter in model.parameters())
    neighborhood = (
        config.pyramid().causal_neighborhood() if arch == "var" else config.pyramid().neighborhood()
    )
    pairs = neighborhood.attended_pairs()
    moved = (large - small) / (LARGE - SMALL)
    flops = product_flops(config, checkpointed), attention_flops(config, pairs, checkpointed)
    return Costs(parameters, *flops, computed_pairs(neighborhood) / pairs, moved, small - SMALL * moved, held)


def product_flops(config: TransformerConfig, checkpointed: bool) -> float:
    """A picture's, forward and backward: a product costs its forward twice more in backward."""
    width, tokens = config.width, config.length
    block = 24 * width**2
    # Backward makes one projection again, 2 C^2 a token; with checkpointing all of forward too.
    per_token = 3 * block + 2 * width**2 + (block if checkpointed else 0)
    modulation = 12 * width**2 * (4 if checkpointed and not config.shared_adaln else 3)
    modulations = modulation if config.shared_adaln else config.depth * modulation
    # Logits are made twice; the first linear needs no gradient of its input.
    head = 4 * (2 * width * config.vocab_size * tokens + 4 * width**2)
    return (
        config.depth * per_token * tokens + modulations + head + 4 * config.z_channels * width * (tokens - 1)
    )


def attention_flops(config: TransformerConfig, pairs: int, checkpointed: bool) -> float:
    return config.depth * config.width * pairs * (18 if checkpointed else 14)


def computed_pairs(neighborhood: Neighborhood) -> int:
    """Scores that the fused kernels compute a head: whole tiles."""
    table = tables(neighborhood, "query", _TILE, _TILE, _CHUNK, torch.bfloat16, torch.device("cpu"))
    return table.num_chunks * _CHUNK * _TILE * _TILE


class _Moved(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[-1]
        if (
            name not in _PRODUCTS
            and not func.is_view
            and name not in ("detach", "empty", "empty_like", "_unsafe_view")
        ):
            tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return out


def moved_bytes(model: Any, loss: Any, batch: int, dtype: torch.dtype) -> int:
    """Of forward and backward, outside products and attention."""
    inputs = example(model, batch, torch.device("cpu"))
    with _Moved() as moved:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            value = loss(*inputs)
        value.backward()
    model.zero_grad()
    return moved.bytes
