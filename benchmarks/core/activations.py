"""Count the bytes that a forward pass holds for backward: the storages that it made and that outlive it.

What one image adds is the difference between two batch sizes, so casts of parameters and masks, which do not
grow with the batch, cancel. Fake tensors have shapes but no memory and give the same counts: inside `fake()`
a model of any size is counted in seconds.
"""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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
        parts: By the function that made them, with type and width.
    """

    bytes: int = 0
    parts: Counter[str] = field(default_factory=Counter)


class _Made(TorchDispatchMode):
    """Watch every storage that an operation makes, without keeping it alive."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int, str]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {storage_key(each) for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            # A weak reference keeps the key from being given to a new storage.
            if isinstance(tensor, Tensor) and storage_key(tensor) not in {*given, *self.storages}:
                storage = tensor.untyped_storage()
                width = f" x {tensor.shape[-1]}" if tensor.dim() > 1 else ""
                part = f"{_calling_function()}, {str(tensor.dtype).removeprefix('torch.')}{width}"
                self.storages[storage_key(tensor)] = StorageWeakRef(storage), storage.nbytes(), part
        return out


@contextmanager
def counting() -> Iterator[Held]:
    """Count what operations inside the block made and what is still alive at its end."""
    held = Held()
    with _Made() as made:
        yield held
    gc.collect()
    for storage, size, part in made.storages.values():
        if not storage.expired():
            held.bytes += size
            held.parts[part] += size


def storage_key(tensor: Tensor) -> int:
    """Return what identifies a tensor's storage, on fake tensors too."""
    return tensor.untyped_storage()._cdata


def _calling_function() -> str:
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
    inputs = example(model, batch, model.device)
    with counting() as held, torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
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
