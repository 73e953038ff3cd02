"""The attention problems, stated once: who attends to whom, shapes and types."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mvar_kernels import Pyramid
from mvar_kernels.pyramid import Neighborhood
from mvar_models.config import RELEASED_SIDES

SIDES = {f"{pixels}px": sides for pixels, sides in RELEASED_SIDES.items()}
DENSE_SCALES = 8
# Head counts of the released depths d16 to d36; all heads have 64 channels.
MODEL_HEADS = (16, 20, 24, 30, 36)
# Floating-point operations per attended pair and channel: QK^T and PV forward, five products backward.
_FORWARD_FLOPS, _BACKWARD_FLOPS = 4, 10


@dataclass(frozen=True)
class Case:
    """One attention problem.

    Attributes:
        name: What tables call it.
        sides: Sides of the pyramid's scales; a single side is one grid.
        kernel_size: Window of the scales that are not dense.
        dense_scales: How many of the first scales attend to whole scales.
        previous_scales: How many scales before its own a token attends to as well.
        batch, heads, head_dim: Shape of query, key and value, (batch, tokens, heads, head_dim).
        dtype: Type of query, key and value.
        cosine: Normalize query and key and scale the scores per head.
        direction: "forward", or "both" for forward with backward.
        causal: VAR's mask over the same tokens (every scale sees itself and all coarser ones), no windows.
    """

    name: str
    sides: tuple[int, ...]
    kernel_size: int = 7
    dense_scales: int = 0
    previous_scales: int = 0
    batch: int = 1
    heads: int = 8
    head_dim: int = 64
    dtype: torch.dtype = torch.float32
    cosine: bool = False
    direction: str = "forward"
    causal: bool = False

    @cached_property
    def pyramid(self) -> Pyramid:
        return Pyramid(self.sides, self.kernel_size, self.dense_scales, self.previous_scales)

    @property
    def neighborhood(self) -> Neighborhood:
        return self.pyramid.causal_neighborhood() if self.causal else self.pyramid.neighborhood()

    @property
    def tokens(self) -> int:
        return self.pyramid.length

    @property
    def attended_pairs(self) -> int:
        """(query, key) pairs per batch element and head."""
        return self.neighborhood.attended_pairs()

    @property
    def flops(self) -> int:
        """Floating-point operations spent on attended pairs."""
        per_pair = _FORWARD_FLOPS + (_BACKWARD_FLOPS if self.direction == "both" else 0)
        return per_pair * self.attended_pairs * self.batch * self.heads * self.head_dim

    @property
    def least_bytes(self) -> int:
        """Bytes that any implementation must move.

        Forward reads q, k, v and writes the output and lse. Backward reads q, k, v, the output, its
        gradient and lse, and writes three gradients.
        """
        element = torch.empty((), dtype=self.dtype).element_size()
        rows = self.batch * self.heads * self.tokens
        tensors, lses = (4 + 8, 2) if self.direction == "both" else (4, 1)
        return rows * (tensors * self.head_dim * element + lses * 4)

    def inputs(
        self, device: torch.device, seed: int = 0
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
        """Draw query, key, value (views of one packed qkv), logit_scale or None, and an output gradient."""
        generator = torch.Generator(device).manual_seed(seed)
        shape = (self.batch, self.tokens, 3, self.heads, self.head_dim)
        qkv = torch.randn(shape, generator=generator, device=device).to(self.dtype)
        query, key, value = qkv.unbind(2)
        grad = torch.randn(query.shape, generator=generator, device=device).to(self.dtype)
        logit_scale = torch.full((self.heads,), 10.0, device=device) if self.cosine else None
        return query, key, value, logit_scale, grad

    def both(self) -> Case:
        """Return the same problem, forward with backward."""
        return replace(self, direction="both")


def grid(side: int, **options: Any) -> Case:
    """Return windows on one square grid."""
    return Case(f"grid {side}", (side,), **options)


def pyramid(name: str, **options: Any) -> Case:
    """Return MVAR's attention at a released resolution, such as "256px"."""
    return Case(f"pyramid {name}", SIDES[name], dense_scales=DENSE_SCALES, **options)


def causal(name: str, **options: Any) -> Case:
    """Return VAR's attention in training at a released resolution."""
    return Case(f"VAR {name}", SIDES[name], causal=True, **options)


def attention_cases(device: torch.device, quick: bool) -> list[Case]:
    """List the attention suite's cases, each forward and with backward.

    GPUs get the batch sizes and heads of real models, CPUs what finishes within minutes.
    """
    forward = _gpu_cases(quick) if device.type == "cuda" else _cpu_cases(quick)
    return [each for case in forward for each in (case, case.both())]


def _gpu_cases(quick: bool) -> Iterator[Case]:
    shape: dict[str, Any] = {"heads": 16, "dtype": torch.bfloat16}
    yield pyramid("256px", batch=64, **shape)
    yield pyramid("256px", batch=64, cosine=True, **shape)
    yield pyramid("512px", batch=16, **shape)
    yield grid(64, batch=4, **shape)
    if quick:
        return
    yield pyramid("256px", batch=8, **shape)
    yield pyramid("256px", batch=1, **shape)
    for heads in MODEL_HEADS[1:]:
        yield pyramid("256px", batch=64, heads=heads, dtype=torch.bfloat16)
    yield pyramid("256px", batch=64, heads=16, dtype=torch.float16)
    yield causal("256px", batch=64, **shape)
    yield pyramid("1024px", batch=4, **shape)
    yield grid(16, batch=64, **shape)
    yield grid(32, batch=16, **shape)
    yield grid(128, batch=1, **shape)
    for kernel_size in (3, 5, 9, 11, 13):
        yield grid(64, batch=4, kernel_size=kernel_size, **shape)


def _cpu_cases(quick: bool) -> Iterator[Case]:
    for side in (8, 16, 32, 64) if quick else (1, 4, 8, 16, 24, 32, 64, 128):
        yield grid(side)
    yield pyramid("256px")
    yield pyramid("256px", cosine=True)
    if quick:
        return
    yield pyramid("512px")
    yield pyramid("1024px")
    yield pyramid("256px", batch=8)
    yield pyramid("256px", heads=MODEL_HEADS[-1])
    yield pyramid("256px", dtype=torch.bfloat16)
    yield causal("256px")
    for kernel_size in (3, 5, 13):
        yield grid(32, kernel_size=kernel_size)
