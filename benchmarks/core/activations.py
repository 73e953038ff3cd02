"""Count the bytes that autograd holds for backward: the distinct storages saved during a forward pass.

Storages of parameters and buffers are left out. What one image adds is the difference between two batch
sizes, so casts of parameters and masks, which do not grow with the batch, cancel. Fake tensors have shapes
but no memory and give the same counts: inside `fake()` a model of any size is counted in seconds.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from mvar_models.config import TransformerConfig
from mvar_models.networks.transformer import ScaleTransformer

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
# The two batch sizes whose difference is taken.
SMALL, LARGE = 1, 3
_PACKAGES = ("mvar_models", "mvar_kernels", "benchmarks")


@dataclass
class Held:
    """Bytes held for backward.

    Attributes:
        bytes: Of all storages.
        parts: By the function that saved them, with type and width of what it saved.
    """

    bytes: int = 0
    parts: Counter[str] = field(default_factory=Counter)


@contextmanager
def counting(excluded: set[int]) -> Iterator[Held]:
    """Count what autograd saves inside the block, except storages whose `storage_key` is excluded."""
    held = Held()
    storages = {}  # kept alive, because a freed storage's key could be given to a new one

    def pack(tensor: Tensor) -> Tensor:
        key = storage_key(tensor)
        if key not in storages and key not in excluded:
            storages[key] = tensor.untyped_storage()
            size = tensor.untyped_storage().nbytes()
            held.bytes += size
            width = f" x {tensor.shape[-1]}" if tensor.dim() > 1 else ""
            held.parts[f"{_saving_function()}, {str(tensor.dtype).removeprefix('torch.')}{width}"] += size
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield held


def storage_key(tensor: Tensor) -> int:
    """Return what identifies a tensor's storage, on fake tensors too."""
    return tensor.untyped_storage()._cdata


def _saving_function() -> str:
    """Return "module.function" of the innermost frame that belongs to this project."""
    frame = sys._getframe(2)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.split(".")[0] in _PACKAGES and module != __name__:
            return f"{module.rsplit('.', 1)[-1]}.{frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"


def example(model: ScaleTransformer, batch: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Draw labels (B,), scale inputs (B, L - 1, z) and indices (B, L) of random images."""
    config = model.config
    labels = torch.randint(config.num_classes, (batch,), device=device)
    inputs = torch.randn((batch, config.length - 1, config.z_channels), device=device)
    return labels, inputs, torch.randint(config.vocab_size, (batch, config.length), device=device)


def held_by(model: ScaleTransformer, loss: Loss, batch: int, dtype: torch.dtype) -> Held:
    """Count one forward pass with loss under autocast to `dtype`; float32 is without autocast."""
    tensors = [*model.parameters(), *model.buffers()]
    device = tensors[0].device
    inputs = example(model, batch, device)
    with (
        counting({storage_key(tensor) for tensor in tensors}) as held,
        torch.autocast(device.type, dtype, enabled=dtype != torch.float32),
    ):
        value = loss(*inputs)
    assert value.requires_grad
    return held


def held_per_image(model: ScaleTransformer, loss: Loss, dtype: torch.dtype = torch.bfloat16) -> Held:
    """Return what one more image adds: batch 3 minus batch 1, halved."""
    small, large = (held_by(model, loss, batch, dtype) for batch in (SMALL, LARGE))
    images = LARGE - SMALL
    parts = {name: (large.parts[name] - small.parts[name]) // images for name in large.parts}
    return Held(
        (large.bytes - small.bytes) // images, Counter({name: size for name, size in parts.items() if size})
    )


@contextmanager
def fake() -> Iterator[None]:
    """Create fake tensors inside the block: shapes and types without memory."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def blank(network: type[ScaleTransformer], config: TransformerConfig) -> ScaleTransformer:
    """Build a model without initializing its weights: that reads values, which fake tensors lack."""
    uninitialized = type(network.__name__, (network,), {"init_weights": lambda self: None})
    model: ScaleTransformer = uninitialized(config)
    return model
