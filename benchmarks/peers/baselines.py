"""The competitors in attention: our backends and other libraries, one small class each."""

from __future__ import annotations

import abc
import contextlib
import importlib.util
import warnings
from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.core.attention_report import REFERENCE
from benchmarks.core.cases import Case
from benchmarks.core.measure import Clock
from mvar_kernels import neighborhood_attn
from mvar_kernels.backends import AttentionCall
from mvar_kernels.dispatch import load

Attention = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], Tensor]

_TOO_LARGE_MASK = "a dense mask of this size is not attempted"
# No dense mask for more tokens: one byte per pair is 1 GiB at 32,768, and a CPU takes minutes per call.
_MOST_DENSE = {"cpu": 5_000, "cuda": 20_000}
# Uncompiled FlexAttention takes seconds per call on a CPU, and a median needs several calls.
_MOST_UNCOMPILED = 2_400


class Baseline(abc.ABC):
    """A competitor: what it is called, what it can run, and the function to time.

    Attributes:
        name: What tables call it.
        exact: Whether it computes the same function. One that does not is only a bound, and skips the gate.
    """

    name: str
    exact: ClassVar[bool] = True

    def can_run(self, case: Case, device: torch.device) -> str | None:
        """Return None if the case can run here, else the reason."""
        return None

    @abc.abstractmethod
    def prepare(self, case: Case, device: torch.device) -> Attention:
        """Build masks and compiled functions, outside the timing.

        Returns:
            A function of query, key, value (B, L, heads, D) and logit_scale or None that gives (B, L,
            heads, D).
        """


class Ours(Baseline):
    """One backend of mvar_kernels, or "auto"."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.name = f"mvar {backend}"

    def can_run(self, case: Case, device: torch.device) -> str | None:
        if self.backend == "reference" and case.tokens > 1_000:
            return "the oracle, not meant for this size"
        if self.backend in ("reference", "sdpa") and case.tokens > _MOST_DENSE[device.type]:
            return "dense scores of this size are not attempted"
        if self.backend == "auto":
            return None
        # One batch element and head is enough to ask; values do not matter.
        query = torch.empty((1, case.tokens, 1, case.head_dim), dtype=case.dtype, device=device)
        logit_scale = torch.ones(1, device=device) if case.cosine else None
        call = AttentionCall(query, query, query, logit_scale, case.neighborhood, 1.0)
        return load(self.backend).can_run(call)

    def prepare(self, case: Case, device: torch.device) -> Attention:
        neighborhood = case.neighborhood
        return lambda query, key, value, logit_scale: neighborhood_attn(
            query, key, value, neighborhood, logit_scale=logit_scale, backend=self.backend
        )


def _cosine(query: Tensor, key: Tensor, logit_scale: Tensor | None) -> tuple[Tensor, Tensor, float | None]:
    """Return query, key and scale for a kernel without cosine attention, as a user would prepare them."""
    if logit_scale is None:
        return query, key, None
    return F.normalize(query, dim=-1) * logit_scale[:, None].to(query.dtype), F.normalize(key, dim=-1), 1.0


class DenseMask(Baseline):
    """scaled_dot_product_attention with an additive dense mask, as in the released VAR."""

    name = REFERENCE

    def can_run(self, case: Case, device: torch.device) -> str | None:
        return None if case.tokens <= _MOST_DENSE[device.type] else _TOO_LARGE_MASK

    def bias(self, case: Case, device: torch.device) -> Tensor:
        """Return (L, L): 0 where attended, -inf elsewhere."""
        bias = torch.zeros((case.tokens, case.tokens), dtype=case.dtype, device=device)
        return bias.masked_fill_(~case.neighborhood.mask().to(device), float("-inf"))

    def prepare(self, case: Case, device: torch.device) -> Attention:
        bias = self.bias(case, device)

        def run(query: Tensor, key: Tensor, value: Tensor, logit_scale: Tensor | None) -> Tensor:
            query, key, scale = _cosine(query, key, logit_scale)
            heads_first = (tensor.transpose(1, 2) for tensor in (query, key, value))
            return F.scaled_dot_product_attention(*heads_first, attn_mask=bias, scale=scale).transpose(1, 2)

        return run


class Eager(DenseMask):
    """softmax(QK^T + mask) V written out, keeping the scores: SDPA's fallback without a fused kernel."""

    name = "softmax(QK^T + mask) V"

    def prepare(self, case: Case, device: torch.device) -> Attention:
        bias = self.bias(case, device)

        def run(query: Tensor, key: Tensor, value: Tensor, logit_scale: Tensor | None) -> Tensor:
            query, key, scale = _cosine(query, key, logit_scale)
            query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
            scale = query.shape[-1] ** -0.5 if scale is None else scale
            scores = query @ key.transpose(-1, -2) * scale + bias
            return (scores.softmax(dim=-1).to(value.dtype) @ value).transpose(1, 2)

        return run


class PerScale(Baseline):
    """One call of scaled_dot_product_attention per scale, each with its own mask."""

    name = "SDPA per scale"

    def can_run(self, case: Case, device: torch.device) -> str | None:
        if case.causal:
            return "VAR's scales see the coarser ones"
        if len(case.sides) == 1:
            return "one scale only: the same as SDPA with a dense mask"
        largest = max(case.sides) ** 2
        return None if largest <= _MOST_DENSE[device.type] else _TOO_LARGE_MASK

    def prepare(self, case: Case, device: torch.device) -> Attention:
        slices = [case.pyramid.scale_slice(scale) for scale in range(case.pyramid.num_scales)]
        whole = case.pyramid.mask()
        biases: list[Tensor | None] = []
        for tokens in slices:
            mask = whole[tokens, tokens].to(device)
            bias = torch.zeros(mask.shape, dtype=case.dtype, device=device)
            biases.append(None if mask.all() else bias.masked_fill_(~mask, float("-inf")))

        def run(query: Tensor, key: Tensor, value: Tensor, logit_scale: Tensor | None) -> Tensor:
            query, key, scale = _cosine(query, key, logit_scale)
            outs = []
            for tokens, bias in zip(slices, biases):
                heads_first = (tensor[:, tokens].transpose(1, 2) for tensor in (query, key, value))
                out = F.scaled_dot_product_attention(*heads_first, attn_mask=bias, scale=scale)
                outs.append(out.transpose(1, 2))
            return torch.cat(outs, dim=1)

        return run


class NoMask(Baseline):
    """Dense attention over all tokens without a mask: another function, and the time that windows must beat.

    On a GPU the fastest of PyTorch's backends is used; on a CPU there is one fused kernel.
    """

    name = "SDPA, no mask (another function)"
    exact = False

    def can_run(self, case: Case, device: torch.device) -> str | None:
        if case.tokens <= _MOST_DENSE[device.type]:
            return None
        return "dense attention of this size is not attempted"

    def prepare(self, case: Case, device: torch.device) -> Attention:
        def run(query: Tensor, key: Tensor, value: Tensor, logit_scale: Tensor | None) -> Tensor:
            query, key, scale = _cosine(query, key, logit_scale)
            heads_first = (tensor.transpose(1, 2) for tensor in (query, key, value))
            return F.scaled_dot_product_attention(*heads_first, scale=scale).transpose(1, 2)

        if device.type == "cpu":
            return run
        backend = _fastest_backend(case, device, run)

        def pinned(query: Tensor, key: Tensor, value: Tensor, logit_scale: Tensor | None) -> Tensor:
            with sdpa_kernel(backend):
                return run(query, key, value, logit_scale)

        return pinned


def _fastest_backend(case: Case, device: torch.device, run: Attention) -> SDPBackend:
    clock = Clock(device)
    query, key, value, logit_scale, _ = case.inputs(device)
    times: dict[SDPBackend, float] = {}
    for backend in (
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ):
        # A backend that does not support the case raises RuntimeError.
        with sdpa_kernel(backend), contextlib.suppress(RuntimeError):
            times[backend] = min(clock(lambda: run(query, key, value, logit_scale)) for _ in range(4))
    return min(times, key=times.__getitem__)


class Flex(Baseline):
    """Compiled FlexAttention with a block mask of the same windows; building the mask is not timed."""

    name = "FlexAttention, compiled"

    def can_run(self, case: Case, device: torch.device) -> str | None:
        if device.type == "cpu" and case.direction == "both":
            return "FlexAttention has no backward on a CPU"
        if case.head_dim & (case.head_dim - 1):
            return "needs a head dimension that is a power of two"
        if case.tokens <= _MOST_DENSE[device.type]:
            return None
        return "its block mask is built from all pairs: too many"

    def prepare(self, case: Case, device: torch.device) -> Attention:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        mask_mod = case.neighborhood.mask_mod(device)
        block_mask = create_block_mask(mask_mod, None, None, case.tokens, case.tokens, device=device)
        # Without a reset, later shapes would be compiled as dynamic ones, and after eight not at all.
        torch._dynamo.reset()
        compiled = torch.compile(flex_attention, dynamic=False)

        def run(query: Tensor, key: Tensor, value: Tensor, logit_scale: Tensor | None) -> Tensor:
            query, key, scale = _cosine(query, key, logit_scale)
            heads_first = (tensor.transpose(1, 2) for tensor in (query, key, value))
            return compiled(*heads_first, block_mask=block_mask, scale=scale).transpose(1, 2)

        return run


class Natten(Baseline):
    """NATTEN's na2d, one call per scale: with its compiled library, or over PyTorch's FlexAttention."""

    def __init__(self, compiled: bool) -> None:
        self.compiled = compiled
        self.name = "NATTEN, compiled library" if compiled else "NATTEN over FlexAttention"

    def can_run(self, case: Case, device: torch.device) -> str | None:
        if importlib.util.find_spec("natten") is None:
            return "not installed (pip install natten)"
        if case.causal:
            return "VAR's mask is no window"
        if self.compiled:
            if device.type == "cpu":
                return "its compiled library runs on NVIDIA GPUs only"
            import natten

            if not natten.HAS_LIBNATTEN:
                return "installed without its compiled library"
        elif case.head_dim & (case.head_dim - 1):
            return "needs a head dimension that is a power of two"
        if device.type == "cpu" and case.direction == "both":
            return "no backward on a CPU"
        if device.type == "cpu" and case.tokens > _MOST_UNCOMPILED:
            return f"dense scores, uncompiled, on a CPU: not attempted beyond {_MOST_UNCOMPILED} tokens"
        if min(case.sides) < 2:
            return "refuses windows and grids of one token"
        return None

    def prepare(self, case: Case, device: torch.device) -> Attention:
        from natten.functional import na2d

        pyramid = case.pyramid
        calls = [
            (pyramid.scale_slice(s), side, window)
            for s, (side, window) in enumerate(zip(pyramid.sides, pyramid.windows))
        ]
        backend = None if self.compiled else "flex-fna"

        def run(query: Tensor, key: Tensor, value: Tensor, logit_scale: Tensor | None) -> Tensor:
            query, key, scale = _cosine(query, key, logit_scale)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                outs = []
                for tokens, side, window in calls:
                    grids = (t[:, tokens].unflatten(1, side) for t in (query, key, value))
                    outs.append(na2d(*grids, kernel_size=window, scale=scale, backend=backend).flatten(1, 2))
            return torch.cat(outs, dim=1) if len(outs) > 1 else outs[0]

        return run


def baselines() -> list[Baseline]:
    """Return all competitors of the attention suite, ours first."""
    ours = [Ours(backend) for backend in ("auto", "triton", "tiled", "sdpa", "reference")]
    return [
        *ours,
        DenseMask(),
        Eager(),
        PerScale(),
        NoMask(),
        Flex(),
        Natten(compiled=True),
        Natten(compiled=False),
    ]
