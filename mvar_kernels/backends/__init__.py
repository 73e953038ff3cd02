"""One implementation a module, all with one signature, found by name and imported when first used.

A module has NAME; `can_run(query, key, value, logit_scale, neighborhood)`, None or the reason why not; `forward(query, key, value,
logit_scale, neighborhood, scale) -> (out, lse)`; and `backward(grad_out, grad_lse, query, key, value, out, lse, logit_scale, neighborhood,
scale) -> (dq, dk, dv, dlogit_scale or None)`. query (B, Lq, H, D); key, value (B, Lk, H, D), any strides; out contiguous in the type of
query; lse (B, H, Lq), natural log, float32 (float64 for float64).
"""

from __future__ import annotations

import importlib
import logging
from types import ModuleType

from torch import Tensor

from mvar_kernels.pyramid import Neighborhood

logger = logging.getLogger("mvar_kernels")

NAMES = ("triton", "tiled", "sdpa", "reference")
_announced: set[tuple[str, str]] = set()


def load(name: str) -> ModuleType:
    """The backend of that name; ValueError for an unknown one."""
    if name not in NAMES:
        raise ValueError(f"backend must be 'auto' or one of {', '.join(map(repr, NAMES))}, got {name!r}")
    return importlib.import_module(f"mvar_kernels.backends.{name}")


def choose(
    name: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    logit_scale: Tensor | None,
    neighborhood: Neighborhood,
) -> ModuleType:
    """The backend to run. A named one that cannot raises RuntimeError with its reason; "auto" says once what it took and why."""
    if name != "auto":
        backend = load(name)
        reason = backend.can_run(query, key, value, logit_scale, neighborhood)
        if reason is not None:
            raise RuntimeError(f"backend {name!r} cannot run here: {reason}")
        return backend
    return load(announced(query, key, value, logit_scale, neighborhood)[0])


def announced(
    query: Tensor, key: Tensor, value: Tensor, logit_scale: Tensor | None, neighborhood: Neighborhood
) -> tuple[str, str]:
    """As `automatic`; what is taken on a kind of device is logged the first time."""
    chosen, why = automatic(query, key, value, logit_scale, neighborhood)
    said = (chosen, query.device.type)
    if said not in _announced:
        _announced.add(said)
        logger.info("backend 'auto' takes %r on %s: %s", chosen, query.device.type, why)
    return chosen, why


def automatic(
    query: Tensor, key: Tensor, value: Tensor, logit_scale: Tensor | None, neighborhood: Neighborhood
) -> tuple[str, str]:
    """What "auto" takes, and why in one line."""
    if query.device.type == "cpu":
        from mvar_kernels.backends import tiled

        return tiled.or_sdpa(neighborhood)
    reason = load("triton").can_run(query, key, value, logit_scale, neighborhood)
    if reason is None:
        return "triton", "the fused kernels run here"
    return "tiled", f"triton cannot run here ({reason})"
