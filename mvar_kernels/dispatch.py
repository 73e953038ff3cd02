"""Backends by name, and the one rule by which "auto" picks among them.

To add a backend, write a module with the three functions of `Backend` and add its row to `BACKENDS`. Public
functions, operators, self-check and tests read that table.
"""

from __future__ import annotations

import functools
import importlib
import logging
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from mvar_kernels import caches
from mvar_kernels.backends.tiled import computed_scores
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


class Backend(Protocol):
    """The functions of a backend module.

    Shapes, everywhere:
        query: (B, Lq, H, D), any strides.
        key, value: (B, Lk, H, D), any strides.
        logit_scale: (H,) for cosine attention, else None.
        out: (B, Lq, H, D), contiguous, in query's type.
        lse: (B, H, Lq), natural log, float32 (float64 for float64).
        grad_out, grad_lse: like out and lse.

    A backend may also have an `eager_forward` (see `EagerForward`): a path with PyTorch's own autograd, for
    calls so short that the overhead of our operators shows.
    """

    def can_run(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        logit_scale: Tensor | None,
        neighborhood: Neighborhood,
    ) -> str | None:
        """Return the reason why the backend cannot take these inputs, or None if it can."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        logit_scale: Tensor | None,
        neighborhood: Neighborhood,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        """Return (out, lse)."""

    def backward(
        self,
        grad_out: Tensor,
        grad_lse: Tensor | None,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        lse: Tensor,
        logit_scale: Tensor | None,
        neighborhood: Neighborhood,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return the gradients of query, key, value and logit_scale (None without logit_scale)."""


class Choice(NamedTuple):
    """What "auto" picked.

    Attributes:
        backend: a name in `BACKENDS`.
        reason: why, in one line.
    """

    backend: str
    reason: str


class EagerForward(Protocol):
    """The optional shortcut of a backend; returns out (B, Lq, H, D), or None if it does not apply."""

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, neighborhood: Neighborhood, scale: float
    ) -> Tensor | None: ...


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


def choose(
    name: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    logit_scale: Tensor | None,
    neighborhood: Neighborhood,
) -> Backend:
    """Return the backend that runs `name` on these inputs.

    Raises:
        RuntimeError: the named backend cannot run here; the message has its reason.
    """
    if name == "auto":
        return load(_announced(query, key, value, logit_scale, neighborhood))
    backend = load(name)
    reason = backend.can_run(query, key, value, logit_scale, neighborhood)
    if reason is not None:
        raise RuntimeError(f"backend {name!r} cannot run here: {reason}")
    return backend


def automatic(
    query: Tensor, key: Tensor, value: Tensor, logit_scale: Tensor | None, neighborhood: Neighborhood
) -> Choice:
    """Apply the rule of "auto": the faster of tiled and sdpa on a CPU; elsewhere triton, else tiled."""
    if query.device.type == "cpu":
        return faster_on_cpu(neighborhood)
    reason = load("triton").can_run(query, key, value, logit_scale, neighborhood)
    if reason is None:
        return Choice("triton", "the fused kernels run here")
    return Choice("tiled", f"triton cannot run here ({reason})")


@caches.remembered(256)
def faster_on_cpu(neighborhood: Neighborhood) -> Choice:
    """Compare the expected costs of tiled and sdpa on a CPU. Dense blocks run the same code in both."""
    dense = tiled = 0.0
    for block in neighborhood.blocks:
        if not block.is_dense:
            dense += block.num_queries * block.num_keys
            tiled += _TILED_PER_SCORE * computed_scores(block) + _TILED_PER_BLOCK
    if tiled < dense:
        return Choice("tiled", f"its tiles take about {tiled / dense:.0%} of the time of dense attention")
    return Choice("sdpa", "grids this small are faster dense")


_logged: set[tuple[str, str]] = set()


def _announced(
    query: Tensor, key: Tensor, value: Tensor, logit_scale: Tensor | None, neighborhood: Neighborhood
) -> str:
    """Return the backend that "auto" picks, and log it the first time it is picked on this type of device."""
    choice = automatic(query, key, value, logit_scale, neighborhood)
    key_of_log = (choice.backend, query.device.type)
    if key_of_log not in _logged:
        _logged.add(key_of_log)
        logger.info("backend 'auto' takes %r on %s: %s", choice.backend, query.device.type, choice.reason)
    return choice.backend


def eager_forward(
    query: Tensor, key: Tensor, value: Tensor, neighborhood: Neighborhood, scale: float
) -> Tensor | None:
    """Return out by the eager shortcut of the backend that "auto" picks, or None where the operators have to
    run.

    The shortcut is taken on a CPU only: that is where our operators' Python takes most of the time of a small
    grid.
    """
    # Compilers and dispatch modes (FLOP counters, fake tensors) must see our operators, not what they are
    # made of.
    if (
        query.device.type != "cpu"
        or torch.compiler.is_compiling()
        or _get_current_dispatch_mode() is not None
    ):
        return None
    if not query.numel():
        return None
    shortcut: EagerForward | None = getattr(
        load(_announced(query, key, value, None, neighborhood)), "eager_forward", None
    )
    return None if shortcut is None else shortcut(query, key, value, neighborhood, scale)
