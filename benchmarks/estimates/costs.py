"""What a training step costs: FLOPs by formula, bytes moved and bytes held counted on fake tensors.

FLOPs are those of our blocks, which recompute part of the forward pass; a test compares the formula with
torch's counter. Bytes moved are the inputs and outputs of every eager operation that is neither a product
nor attention nor a view: an upper bound, because torch.compile fuses many of them. Costs have a part per
image and a part per step.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.core.activations import LARGE, SMALL, Loss, blank, example, fake, held_per_image
from benchmarks.core.shapes import Shape
from benchmarks.peers.plain_pytorch import case_of, loss_of
from mvar_kernels.backends.triton.schedule import tables
from mvar_kernels.pyramid import Neighborhood
from mvar_models.config import TransformerConfig
from mvar_models.networks.transformer import ScaleTransformer
from mvar_models.registry import architecture

# Operations whose bytes count with their FLOPs, and those that move no bytes.
_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "attention", "attention_backward")
# "device" is how fake tensors tell their device.
_MOVES_NOTHING = ("detach", "device", "empty", "empty_like", "_unsafe_view")
# The forward kernel's on most GPUs; counts differ little between them.
_TILE, _CHUNK = 8, 64


@dataclass(frozen=True)
class Costs:
    """Per-image costs; fields named `fixed_*` are per step.

    Attributes:
        parameters: Number of parameters.
        product_flops: FLOPs of matrix products, forward and backward.
        attention_flops: FLOPs of attended pairs.
        overwork: Scores that whole tiles compute, divided by attended pairs.
        moved: Bytes moved outside products and attention, per image.
        fixed_moved: Bytes moved whatever the batch (casts of parameters, their gradients).
        held: Bytes held for backward.
    """

    parameters: int
    product_flops: float
    attention_flops: float
    overwork: float
    moved: float
    fixed_moved: float
    held: int


@functools.cache
def costs(shape: Shape, arch: str, checkpointed: bool = False) -> Costs:
    """Count the costs of training one architecture at one shape."""
    way = "ours, checkpointed" if checkpointed else "ours"
    config = shape.config(arch)
    with fake():
        model = blank(architecture(arch).network_class(), config)
        loss = loss_of(model, way, shape.dtype)
        held = held_per_image(model, loss, shape.dtype).bytes
        small, large = (moved_bytes(model, loss, batch, shape.dtype) for batch in (SMALL, LARGE))
        parameters = sum(parameter.numel() for parameter in model.parameters())
        neighborhood = case_of(model, shape.batch, shape.dtype).neighborhood
    pairs = neighborhood.attended_pairs()
    moved = (large - small) / (LARGE - SMALL)
    return Costs(
        parameters=parameters,
        product_flops=product_flops(config, checkpointed),
        attention_flops=attention_flops(config, pairs, checkpointed),
        overwork=computed_pairs(neighborhood) / pairs,
        moved=moved,
        fixed_moved=small - SMALL * moved,
        held=held,
    )


def product_flops(config: TransformerConfig, checkpointed: bool) -> float:
    """Return FLOPs of matrix products per image; backward costs twice the forward."""
    width, tokens = config.width, config.length
    block = 24 * width**2
    # Backward recomputes one projection, 2 C^2 per token; with checkpointing the whole forward instead.
    per_token = 3 * block + (block if checkpointed else 2 * width**2)
    modulation = 12 * width**2 * (4 if checkpointed and not config.shared_adaln else 3)
    modulations = modulation if config.shared_adaln else config.depth * modulation
    # Logits are recomputed in backward, and the head's modulation with them.
    head = 4 * (2 * width * config.vocab_size * tokens + 4 * width**2)
    # The first linear layer needs no gradient of its input: one product in backward, not two.
    embedding = 4 * config.z_channels * width * (tokens - 1)
    return config.depth * per_token * tokens + modulations + head + embedding


def attention_flops(config: TransformerConfig, pairs: int, checkpointed: bool) -> float:
    """Return FLOPs of attention per image, for `pairs` attended pairs per head."""
    return config.depth * config.width * pairs * (18 if checkpointed else 14)


def computed_pairs(neighborhood: Neighborhood) -> int:
    """Return the scores that the fused kernels compute per head: whole tiles."""
    table = tables(neighborhood, "query", _TILE, _TILE, _CHUNK, torch.bfloat16, torch.device("cpu"))
    return table.num_chunks * _CHUNK * _TILE * _TILE


class _Moved(TorchDispatchMode):
    """Sum the bytes of inputs and outputs of every operation but products, attention and views."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[-1]
        if name not in _PRODUCTS and not func.is_view and name not in _MOVES_NOTHING:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return out


def moved_bytes(model: ScaleTransformer, loss: Loss, batch: int, dtype: torch.dtype) -> int:
    """Return the bytes moved by forward and backward outside products and attention."""
    inputs = example(model, batch, torch.device("cpu"))
    with _Moved() as moved:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            value = loss(*inputs)
        value.backward()  # type: ignore[no-untyped-call]
    model.zero_grad()
    return moved.bytes
