"""Backends by name, and the one rule by which "auto" picks among them.

To add a backend, write a module with the three functions of `backends.Backend` and add its row to `BACKENDS`.
Public functions, operators, self-check and tests read that table.
"""

from __future__ import annotations

import functools
import importlib
import logging
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from mvar_kernels import caches
from mvar_kernels.backends import AttentionCall, Backend
from mvar_kernels.pyramid import Neighborhood

logger = logging.getLogger("mvar_kernels")

# Name -> module, imported when first used: the triton backend must not be needed to import mvar_kernels.
BACKENDS: dict[str, str] = {
    "triton": "mvar_kernels.backends.triton",
    "tiled": "mvar_kernels.backends.tiled",
    "sdpa": "mvar_kernels.backends.sdpa",
    "reference": "mvar_kernels.backends.reference",
}

# The cost model of "auto" on a CPU, in units of one score of dense attention per batch element and head: what
# a score inside a tile costs, and what a windowed block costs on top. Fitted by eye, so close calls may fall
# either way.
_TILED_PER_SCORE = 2.1
_TILED_PER_BLOCK = 20_000


class BackendChoice(NamedTuple):
    """What "auto" picked.

    Attributes:
        backend: a name in `BACKENDS`.
        reason: why, in one line.
    """

    backend: str
    reason: str


def check_name(name: str) -> None:
    """Raise ValueError unless `name` is "auto" or a backend."""
    if name != "auto" and name not in BACKENDS:
        raise _unknown(name)


def _unknown(name: str) -> ValueError:
    return ValueError(f"backend must be 'auto' or one of {', '.join(map(repr, BACKENDS))}, got {name!r}")


def load(name: str) -> Backend:
    """Import a backend by name.

    Raises:
        ValueError: there is no backend of that name.
    """
    if name not in BACKENDS:
        raise _unknown(name)
    return _import(BACKENDS[name])


@functools.lru_cache
def _import(path: str) -> Backend:
    return cast(Backend, importlib.import_module(path))


def choose(name: str, call: AttentionCall) -> Backend:
    """Return the backend that runs `name` on this call.

    Raises:
        RuntimeError: the named backend cannot run here; the message has its reason.
    """
    if name == "auto":
        return load(_announced(call))
    backend = load(name)
    reason = backend.can_run(call)
    if reason is not None:
        raise RuntimeError(f"backend {name!r} cannot run here: {reason}")
    return backend


def resolve(name: str, call: AttentionCall) -> str:
    """Return the backend that "auto" takes for a call, which forward and backward then share.

    Graphs keep "auto", as they may be traced on one device and run on another: while a compiler or a dispatch
    mode (FLOP counters, fake tensors) looks on, `name` is returned as it is, and each operator decides.
    """
    if name != "auto" or torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None:
        return name
    return _announced(call)


def automatic(call: AttentionCall) -> BackendChoice:
    """Apply the rule of "auto": the faster of tiled and sdpa on a CPU; elsewhere triton, else tiled."""
    if call.device.type == "cpu":
        return faster_on_cpu(call.neighborhood)
    reason = load("triton").can_run(call)
    if reason is None:
        return BackendChoice("triton", "the fused kernels run here")
    return BackendChoice("tiled", f"triton cannot run here ({reason})")


@caches.remembered(256)
def faster_on_cpu(neighborhood: Neighborhood) -> BackendChoice:
    """Compare the expected costs of tiled and sdpa on a CPU. Dense blocks run the same code in both."""
    from mvar_kernels.backends.tiled import computed_scores

    dense = tiled = 0.0
    for block in neighborhood.blocks:
        if not block.is_dense:
            dense += block.num_queries * block.num_keys
            tiled += _TILED_PER_SCORE * computed_scores(block) + _TILED_PER_BLOCK
    if tiled < dense:
        return BackendChoice(
            "tiled", f"its tiles take about {tiled / dense:.0%} of the time of dense attention"
        )
    return BackendChoice("sdpa", "grids this small are faster dense")


_logged: set[tuple[str, str]] = set()


def _announced(call: AttentionCall) -> str:
    """Return the backend that "auto" picks, and log it the first time it is picked on this type of device."""
    choice, device = automatic(call), call.device.type
    if (choice.backend, device) not in _logged:
        _logged.add((choice.backend, device))
        logger.info("backend 'auto' takes %r on %s: %s", choice.backend, device, choice.reason)
    return choice.backend


def eager_forward(name: str, call: AttentionCall) -> Tensor | None:
    """Return out by the eager shortcut of the backend that "auto" took, or None where operators have to run.

    The shortcut is taken on a CPU only, where our operators' Python takes most of the time of a small grid,
    and never in a graph, which must see our operators, not what they are made of (`resolve` has kept "auto").
    """
    if name == "auto" or call.cosine or call.device.type != "cpu" or not call.query.numel():
        return None
    shortcut = getattr(load(name), "eager_forward", None)
    return None if shortcut is None else shortcut(call)
