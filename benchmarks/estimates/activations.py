"""What autograd holds for backward, counted: the bytes of the distinct storages that are saved during a forward pass.

Storages of parameters and buffers are left out, and what one picture adds is the difference between two batches, so casts of parameters and
masks, which do not grow with the batch, cancel. The count is the same on fake tensors, which have shapes and no memory: a model of any size is
counted in seconds (`fake`), and the same function counts a real run.
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
SMALL, LARGE = 1, 3
_PACKAGES = ("mvar_models", "mvar_kernels", "benchmarks")
_HERE = __name__


@dataclass
class Held:
    """bytes: of all storages. parts: bytes by the function that saved them and the type and shape of what it saved."""

    bytes: int = 0
    parts: Counter[str] = field(default_factory=Counter)


@contextmanager
def counting(excluded: set[int]) -> Iterator[Held]:
    """Counts what is saved inside; `excluded` are `storage_key`s."""
    held = Held()
    storages = {}  # keeps them, so that no key is given twice

    def pack(tensor: Tensor) -> Tensor:
        key = storage_key(tensor)
        if key not in storages and key not in excluded:
            storages[key] = tensor.untyped_storage()
            size = tensor.untyped_storage().nbytes()
            held.bytes += size
            width = f" x {tensor.shape[-1]}" if tensor.dim() > 1 else ""
            held.parts[f"{_who_saves()}, {str(tensor.dtype).removeprefix('torch.')}{width}"] += size
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield held


def storage_key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _who_saves() -> str:
    """module.function of the innermost frame of ours."""
    frame = sys._getframe(2)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.split(".")[0] in _PACKAGES and module != _HERE:
            return f"{module.rsplit('.', 1)[-1]}.{frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"


def example(model: ScaleTransformer, batch: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """labels, scale_inputs and indices of random pictures."""
    config = model.config
    labels = torch.randint(config.num_classes, (batch,), device=device)
    inputs = torch.randn((batch, config.length - 1, config.z_channels), device=device)
    return labels, inputs, torch.randint(config.vocab_size, (batch, config.length), device=device)


def held_by(model: ScaleTransformer, loss: Loss, batch: int, dtype: torch.dtype) -> Held:
    """Of one forward pass with loss; autocast to `dtype`, float32 is without."""
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


def a_picture(model: ScaleTransformer, loss: Loss, dtype: torch.dtype = torch.bfloat16) -> Held:
    """What one more picture adds: batch 3 minus batch 1, halved."""
    small, large = (held_by(model, loss, batch, dtype) for batch in (SMALL, LARGE))
    steps = LARGE - SMALL
    parts = {name: (large.parts[name] - small.parts[name]) // steps for name in large.parts}
    return Held(
        (large.bytes - small.bytes) // steps, Counter({name: size for name, size in parts.items() if size})
    )


@contextmanager
def fake() -> Iterator[None]:
    """Inside, tensors are made with shapes and types and no memory."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def blank(kind: type[ScaleTransformer], config: TransformerConfig) -> ScaleTransformer:
    """A model whose values were not drawn; drawing looks at values, which fake tensors lack."""
    return type(kind.__name__, (kind,), {"init_weights": lambda self: None})(config)
