"""The cases, declared once: who attends to whom, shapes and types."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from mvar_kernels import Pyramid
from mvar_kernels.pyramid import Neighborhood

SIDES = {
    "256px": (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    "512px": (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
    "1024px": (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64),
}
DENSE_SCALES = 8
# Heads of 64 of the released depths d16 to d36.
MODEL_HEADS = (16, 20, 24, 30, 36)


@dataclass(frozen=True)
class Case:
    """One attention problem. `sides`: the pyramid's; one side is a single grid with windows. direction: "forward" or "both".

    causal: VAR's mask over the same tokens, every scale over itself and all coarser ones, instead of windows.
    """

    name: str
    sides: tuple[int, ...]
    kernel_size: int = 7
    dense_scales: int = 0
    batch: int = 1
    heads: int = 8
    head_dim: int = 64
    dtype: torch.dtype = torch.float32
    cosine: bool = False
    direction: str = "forward"
    causal: bool = False

    @cached_property
    def pyramid(self) -> Pyramid:
        return Pyramid(self.sides, self.kernel_size, self.dense_scales)

    @property
    def neighborhood(self) -> Neighborhood:
        return self.pyramid.causal_neighborhood() if self.causal else self.pyramid.neighborhood()

    @property
    def tokens(self) -> int:
        return self.pyramid.length

    @property
    def attended_pairs(self) -> int:
        """Of one batch element and head."""
        return self.neighborhood.attended_pairs()

    @property
    def flops(self) -> int:
        """Useful ones: 4 a pair and channel forward, 10 more backward."""
        return (
            (14 if self.direction == "both" else 4)
            * self.attended_pairs
            * self.batch
            * self.heads
            * self.head_dim
        )

    @property
    def least_bytes(self) -> int:
        """What must move: q, k, v in and o out once; backward reads q, k, v, o, dO and writes dq, dk, dv; lse both ways."""
        element = torch.empty((), dtype=self.dtype).element_size()
        rows = self.batch * self.heads * self.tokens
        tensors, lses = (4 + 8, 2) if self.direction == "both" else (4, 1)
        return rows * (tensors * self.head_dim * element + lses * 4)

    def inputs(
        self, device: torch.device, seed: int = 0
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
        """query, key, value as views of a packed qkv, logit_scale or None, and a gradient of the output."""
        generator = torch.Generator(device).manual_seed(seed)
        shape = (self.batch, self.tokens, 3, self.heads, self.head_dim)
        qkv = torch.randn(shape, generator=generator, device=device).to(self.dtype)
        query, key, value = qkv.unbind(2)
        grad = torch.randn(query.shape, generator=generator, device=device).to(self.dtype)
        return (
            query,
            key,
            value,
            torch.full((self.heads,), 10.0, device=device) if self.cosine else None,
            grad,
        )

    def both(self) -> Case:
        return replace(self, direction="both")


def grid(side: int, **options: object) -> Case:
    return Case(f"grid {side}", (side,), **options)  # type: ignore[arg-type]


def pyramid(name: str, **options: object) -> Case:
    return Case(f"pyramid {name}", SIDES[name], dense_scales=DENSE_SCALES, **options)  # type: ignore[arg-type]


def causal(name: str, **options: object) -> Case:
    """VAR's attention in training."""
    return Case(f"VAR {name}", SIDES[name], causal=True, **options)  # type: ignore[arg-type]


def attention_cases(device: torch.device, quick: bool) -> list[Case]:
    """Forward, and forward with backward. GPUs get the batches and heads of real models, CPUs what ends within minutes."""
    if device.type == "cuda":
        shape = {"heads": 16, "dtype": torch.bfloat16}
        forward = [
            pyramid("256px", batch=64, **shape),
            pyramid("256px", batch=64, cosine=True, **shape),
            pyramid("512px", batch=16, **shape),
            grid(64, batch=4, **shape),
        ]
        if not quick:
            forward += [
                pyramid("256px", batch=8, **shape),
                pyramid("256px", batch=1, **shape),
                *(pyramid("256px", batch=64, heads=heads, dtype=torch.bfloat16) for heads in MODEL_HEADS[1:]),
                pyramid("256px", batch=64, heads=16, dtype=torch.float16),
                causal("256px", batch=64, **shape),
                pyramid("1024px", batch=4, **shape),
                grid(16, batch=64, **shape),
                grid(32, batch=16, **shape),
                grid(128, batch=1, **shape),
                *(grid(64, batch=4, kernel_size=k, **shape) for k in (3, 5, 9, 11, 13)),
            ]
    else:
        forward = [grid(side) for side in ((8, 16, 32, 64) if quick else (1, 4, 8, 16, 24, 32, 64, 128))]
        forward += [pyramid("256px"), pyramid("256px", cosine=True)]
        if not quick:
            forward += [
                pyramid("512px"),
                pyramid("1024px"),
                pyramid("256px", batch=8),
                pyramid("256px", heads=MODEL_HEADS[-1]),
                pyramid("256px", dtype=torch.bfloat16),
                causal("256px"),
                *(grid(32, kernel_size=k) for k in (3, 5, 13)),
            ]
    return [case for one in forward for case in (one, one.both())]
