"""The competitors: ours and every real peer. Each is a small class with `can_run`, None or the reason why not, and `prepare`."""

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

from benchmarks.core.cases import Case
from benchmarks.core.measure import Clock
from mvar_kernels.attention import neighborhood_attn
from mvar_kernels.dispatch import load

Attention = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], Tensor]
# A dense mask of more tokens than this is not made: 1 byte a pair is 1 GiB at 32,768 tokens, and CPUs take minutes a call.
_MOST_DENSE = {"cpu": 5_000, "cuda": 20_000}
# Uncompiled FlexAttention on a CPU takes 5 seconds for 4,096 tokens, and as many calls as a median needs.
_MOST_UNCOMPILED = 2_400


class Baseline(abc.ABC):
    """query, key, value (B, L, heads, D), logit_scale or None -> (B, L, heads, D)."""

    name: ClassVar[str]
    # Whether it computes the same function; where not, it is no competitor but a bound, and the gate lets it pass.
    exact: ClassVar[bool] = True

    def can_run(self, case: Case, device: torch.device) -> str | None:
        return None

    @abc.abstractmethod
    def prepare(self, case: Case, device: torch.device) -> Attention:
        """What may be made once per shape (masks, compiled functions), outside the timing."""


class Ours(Baseline):
    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.name = f"mvar {backend}"  # type: ignore[misc]

    def can_run(self, case: Case, device: torch.device) -> str | None:
        if self.backend == "reference" and case.tokens > 1_000:
            return "the oracle, not meant for this size"
        if self.backend in ("reference", "sdpa") and case.tokens > _MOST_DENSE[device.type]:
            return "dense scores of this size are not attempted"
        if self.backend == "auto":
            return None
        query, key, value, factor, _ = (
            case.inputs(torch.device("meta")) if device.type == "meta" else _small(case, device)
        )
        return load(self.backend).can_run(query, key, value, factor, case.neighborhood)

    def prepare(self, case: Case, device: torch.device) -> Attention:
        neighborhood = case.neighborhood
        return lambda query, key, value, factor: neighborhood_attn(
            query, key, value, neighborhood, logit_scale=factor, backend=self.backend
        )


def _small(case: Case, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    query = torch.empty((1, case.tokens, 1, case.head_dim), dtype=case.dtype, device=device)
    return query, query, query, torch.ones(1, device=device) if case.cosine else None, query


def _cosine(query: Tensor, key: Tensor, factor: Tensor | None) -> tuple[Tensor, Tensor, float | None]:
    """What a user writes around a kernel that knows no cosine attention."""
    if factor is None:
        return query, key, None
    return F.normalize(query, dim=-1) * factor[:, None].to(query.dtype), F.normalize(key, dim=-1), 1.0


class DenseMask(Baseline):
    """scaled_dot_product_attention with the mask, as the released VAR does."""

    name = "SDPA, dense mask"

    def can_run(self, case: Case, device: torch.device) -> str | None:
        return (
            None if case.tokens <= _MOST_DENSE[device.type] else "a dense mask of this size is not attempted"
        )

    def bias(self, case: Case, device: torch.device) -> Tensor:
        """(L, L): 0 where attended, -inf elsewhere."""
        bias = torch.zeros((case.tokens, case.tokens), dtype=case.dtype, device=device)
        return bias.masked_fill_(~case.neighborhood.mask().to(device), float("-inf"))

    def prepare(self, case: Case, device: torch.device) -> Attention:
        bias = self.bias(case, device)

        def run(query: Tensor, key: Tensor, value: Tensor, factor: Tensor | None) -> Tensor:
            query, key, scale = _cosine(query, key, factor)
            heads_first = (tensor.transpose(1, 2) for tensor in (query, key, value))
            return F.scaled_dot_product_attention(*heads_first, attn_mask=bias, scale=scale).transpose(1, 2)

        return run


class Eager(DenseMask):
    """softmax(QK^T + mask) V written out: what SDPA falls back to where no fused kernel takes a mask. Scores are kept for backward."""

    name = "softmax(QK^T + mask) V"

    def prepare(self, case: Case, device: torch.device) -> Attention:
        bias = self.bias(case, device)

        def run(query: Tensor, key: Tensor, value: Tensor, factor: Tensor | None) -> Tensor:
            query, key, scale = _cosine(query, key, factor)
            query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
            scores = (
                query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale) + bias
            )
            return (scores.softmax(dim=-1).to(value.dtype) @ value).transpose(1, 2)

        return run


class PerScale(Baseline):
    """One call of scaled_dot_product_attention a scale, each with its own mask."""

    name = "SDPA per scale"

    def can_run(self, case: Case, device: torch.device) -> str | None:
        if case.causal:
            return "VAR's scales see the coarser ones"
        if len(case.sides) == 1:
            return "one scale only: the same as SDPA with a dense mask"
        largest = max(case.sides) ** 2
        return None if largest <= _MOST_DENSE[device.type] else "a dense mask of this size is not attempted"

    def prepare(self, case: Case, device: torch.device) -> Attention:
        slices = [case.pyramid.scale_slice(scale) for scale in range(case.pyramid.num_scales)]
        whole = case.pyramid.mask()
        biases = []
        for where in slices:
            mask = whole[where, where].to(device)
            biases.append(
                None
                if mask.all()
                else torch.zeros(mask.shape, dtype=case.dtype, device=device).masked_fill_(
                    ~mask, float("-inf")
                )
            )

        def run(query: Tensor, key: Tensor, value: Tensor, factor: Tensor | None) -> Tensor:
            query, key, scale = _cosine(query, key, factor)
            outs = []
            for where, bias in zip(slices, biases):
                heads_first = (tensor[:, where].transpose(1, 2) for tensor in (query, key, value))
                outs.append(
                    F.scaled_dot_product_attention(*heads_first, attn_mask=bias, scale=scale).transpose(1, 2)
                )
            return torch.cat(outs, dim=1)

        return run


class NoMask(Baseline):
    """The fastest dense attention over all tokens without a mask: another function, shown as what windows must beat.

    On GPUs PyTorch's backends are tried and the fastest is kept; on a CPU there is one fused kernel.
    """

    name = "SDPA, no mask (another function)"
    exact = False

    def can_run(self, case: Case, device: torch.device) -> str | None:
        return (
            None
            if case.tokens <= _MOST_DENSE[device.type]
            else "dense attention of this size is not attempted"
        )

    def prepare(self, case: Case, device: torch.device) -> Attention:
        def run(query: Tensor, key: Tensor, value: Tensor, factor: Tensor | None) -> Tensor:
            query, key, scale = _cosine(query, key, factor)
            heads_first = (tensor.transpose(1, 2) for tensor in (query, key, value))
            return F.scaled_dot_product_attention(*heads_first, scale=scale).transpose(1, 2)

        if device.type == "cpu":
            return run
        backend = _fastest_backend(case, device, run)

        def pinned(query: Tensor, key: Tensor, value: Tensor, factor: Tensor | None) -> Tensor:
            with sdpa_kernel(backend):
                return run(query, key, value, factor)

        return pinned


def _fastest_backend(case: Case, device: torch.device, run: Attention) -> SDPBackend:
    clock = Clock(device)
    query, key, value, factor, _ = case.inputs(device)
    times: dict[SDPBackend, float] = {}
    for backend in (
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ):
        with sdpa_kernel(backend), contextlib.suppress(RuntimeError):  # a backend that does not take the case
            times[backend] = min(clock(lambda: run(query, key, value, factor)) for _ in range(4))
    return min(times, key=times.__getitem__)


class Flex(Baseline):
    """Compiled FlexAttention with a block mask of the same windows; making the mask is apart."""

    name = "FlexAttention, compiled"

    def can_run(self, case: Case, device: torch.device) -> str | None:
        if device.type == "cpu" and case.direction == "both":
            return "FlexAttention has no backward on a CPU"
        if case.head_dim & (case.head_dim - 1):
            return "needs a head dimension that is a power of two"
        return (
            None
            if case.tokens <= _MOST_DENSE[device.type]
            else "its block mask is made from all pairs: too many"
        )

    def prepare(self, case: Case, device: torch.device) -> Attention:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        mask = case.neighborhood.mask().to(device)
        block_mask = create_block_mask(
            lambda b, h, q, k: mask[q, k], None, None, case.tokens, case.tokens, device=device
        )
        # Else later shapes would be compiled as dynamic ones, and after eight not at all.
        torch._dynamo.reset()
        compiled = torch.compile(flex_attention, dynamic=False)

        def run(query: Tensor, key: Tensor, value: Tensor, factor: Tensor | None) -> Tensor:
            query, key, scale = _cosine(query, key, factor)
            heads_first = (tensor.transpose(1, 2) for tensor in (query, key, value))
            return compiled(*heads_first, block_mask=block_mask, scale=scale).transpose(1, 2)

        return run


class Natten(Baseline):
    """NATTEN's na2d, a call a scale: with its compiled library, or over PyTorch's FlexAttention."""

    def __init__(self, compiled: bool) -> None:
        self.compiled = compiled
        self.name = "NATTEN, compiled library" if compiled else "NATTEN over FlexAttention"  # type: ignore[misc]

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
            return (
                f"computes dense scores, uncompiled, on a CPU: not attempted beyond {_MOST_UNCOMPILED} tokens"
            )
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

        def run(query: Tensor, key: Tensor, value: Tensor, factor: Tensor | None) -> Tensor:
            query, key, scale = _cosine(query, key, factor)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                outs = []
                for where, side, window in calls:
                    grids = (t[:, where].unflatten(1, side) for t in (query, key, value))
                    outs.append(na2d(*grids, kernel_size=window, scale=scale, backend=backend).flatten(1, 2))
            return torch.cat(outs, dim=1) if len(outs) > 1 else outs[0]

        return run


REFERENCE = DenseMask.name


def baselines() -> list[Baseline]:
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
