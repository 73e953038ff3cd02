"""Whether a layer is still what the network made it, so that a fast path may read its weight.

Adapters, quantization, offloading, parametrizations and hooks replace a layer or act when it is called. All
paths that do not call a layer ask here first.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules import module as _modules
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

_HOOKS = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")


def is_untouched(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether a call of the module is `kind.forward`: same type, no hook, no other forward."""
    return type(module) is kind and not is_hooked(module)


def is_hooked(module: nn.Module) -> bool:
    """Return whether a call of the module runs more than the forward of its class."""
    return bool(
        "forward" in module.__dict__
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or hooked_everywhere()
    )


def is_plain(*layers: nn.Module, kind: type[nn.Module] = nn.Linear) -> bool:
    """Return whether these are untouched layers whose weights are ordinary tensors."""
    return all(
        is_untouched(each, kind) and not is_traceable_wrapper_subclass(each.weight)  # type: ignore[arg-type]
        for each in layers
    )


def hooked_everywhere() -> bool:
    """Return whether there are hooks on all modules of the process."""
    return not torch.compiler.is_compiling() and any(
        getattr(_modules, f"_global_{name}", None) for name in _HOOKS
    )


def is_known(module: nn.Module) -> bool:
    """Return whether a module is torch.nn's or ours, which compute from tensors and simple attributes."""
    return f"{type(module).__module__}.".startswith(("torch.nn.", "mvar_models."))


def input_dtype(layer: nn.Module) -> torch.dtype:
    """Return the type of a layer's inputs: that of its first floating-point parameter, else float32.

    Quantized layers hold their weights otherwise and take float32.
    """
    return next((each.dtype for each in layer.parameters() if each.is_floating_point()), torch.float32)
