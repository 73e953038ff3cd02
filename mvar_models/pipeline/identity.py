"""What determines drawn images: results are kept under it, and never reused under another."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from mvar_kernels import __version__
from mvar_models.networks.layers import is_known
from mvar_models.networks.scorer import load_scorer
from mvar_models.pipeline.editing import Editing
from mvar_models.sampling.settings import SamplingSettings

# Of a configuration: what no network computes with. Settings of sampling count as those of the call.
_ASIDE = {"class_names", "vqvae", "origin", *(field.name for field in fields(SamplingSettings))}


def determinants(pipeline: Editing, settings: SamplingSettings | None = None) -> dict[str, Any]:
    """Return what determines images besides labels, seeds and batches, as JSON holds it.

    Args:
        pipeline: Samples the images.
        settings: Settings of the call; default: the checkpoint's.
    """
    settings = SamplingSettings.of(pipeline.model.config) if settings is None else settings
    return {**drawing_weights(pipeline), **settings.to_dict(), "scorer_weights": scorer_identity(settings)}


def drawing_weights(pipeline: Editing) -> dict[str, str]:
    """Return what determines the images under every preset: the content of both networks, and our version."""
    networks = pipeline.model, pipeline.vqvae
    return {"model_weights": "-".join(map(network_identity, networks)), "mvar": __version__}


def scorer_identity(settings: SamplingSettings) -> str | None:
    """Return the content of the scorer that the settings name, or None."""
    return None if settings.scorer is None else network_identity(load_scorer(settings.scorer))


def network_identity(network: nn.Module) -> str:
    """Return 16 hex digits of all that decides what a network computes: configuration and weights.

    Layers of other packages count by name and by their plain attributes, such as the scale of an adapter, and
    hooks by name, since what they do cannot be read.
    """
    config: Any = network.config
    kept = {name: value for name, value in config.to_dict().items() if name not in _ASIDE}
    total = hashlib.sha256((json.dumps(kept, indent=2) + "\n").encode())
    for name, value in sorted(network.state_dict().items()):
        # Statistics of training, which encode and decode do not read.
        if not name.endswith("code_usage"):
            total.update(name.encode())
            for content in _contents(value):
                total.update(content)
    for name, module in network.named_modules():
        strange = [] if is_known(module) else [type(module)]
        if strange:
            total.update(f"{name} {_plain_attributes(module)}".encode())
        for what in (*strange, *module._forward_hooks.values(), *module._forward_pre_hooks.values()):
            total.update(f"{name} {what.__module__}.{getattr(what, '__qualname__', type(what))}".encode())
    return total.hexdigest()[:16]


def _plain_attributes(module: nn.Module) -> str:
    """Return the public attributes of a module that JSON can hold."""
    plain = {}
    for name, value in vars(module).items():
        if name[0] != "_" and name != "training":
            with contextlib.suppress(TypeError, ValueError):
                plain[name] = json.dumps(value, sort_keys=True)
    return json.dumps(plain, sort_keys=True)


def _contents(value: Any) -> Iterator[Any]:
    """Yield the bytes of a tensor, or of the tensors that a quantised layer or tensor packs."""
    if is_traceable_wrapper_subclass(value):
        for name in value.__tensor_flatten__()[0]:
            yield from _contents(getattr(value, name))
    elif isinstance(value, Tensor):
        value = value.detach().dequantize() if value.is_quantized else value.detach()
        yield value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _contents(each)
    else:
        yield repr(value).encode()
