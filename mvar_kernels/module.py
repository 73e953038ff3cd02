"""`SpatialMarkovAttention`: neighborhood attention as a module, for vision models."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mvar_kernels.attention import spatial_markov_attn
from mvar_kernels.per_axis import as_grid

MAX_LOG_SCALE = math.log(100)


class SpatialMarkovAttention(nn.Module):
    """Project to q, k, v, attend over windows, project back: (B, H, W, dim) -> (B, H, W, dim).

    Args:
        dim: channels, a multiple of `num_heads`.
        num_heads: attention heads.
        kernel_size: an int or (rows, columns); windows larger than the grid are the grid.
        qkv_bias: whether the qkv projection has a bias.
        cosine: cosine attention with a learned factor exp(min(log_scale, log 100)) per head (Swin v2, VAR).
        cosine_init: initial value of that factor.
        scale: factor of the logits; default D^-0.5, or 1 with `cosine`.
        backend: as for `spatial_markov_attn`.

    Raises:
        ValueError: `dim` is not a multiple of `num_heads`, or a window is below 1.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int | tuple[int, int] = 7,
        *,
        qkv_bias: bool = True,
        cosine: bool = False,
        cosine_init: float = 10.0,
        scale: float | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"dim ({dim}) must be a multiple of num_heads ({num_heads})")
        self.num_heads = num_heads
        self.kernel_size = as_grid(kernel_size, 2, "kernel_size")
        self.scale = scale
        self.backend = backend
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.log_scale = nn.Parameter(torch.full((num_heads,), math.log(cosine_init))) if cosine else None

    def forward(self, features: Tensor) -> Tensor:
        if features.dim() != 4:
            raise ValueError(f"features must be (B, H, W, dim), got {tuple(features.shape)}")
        query, key, value = self.qkv(features).unflatten(-1, (3, self.num_heads, -1)).unbind(3)
        factor = None if self.log_scale is None else self.log_scale.clamp_max(MAX_LOG_SCALE).exp()
        out = spatial_markov_attn(
            query, key, value, self.kernel_size, scale=self.scale, logit_scale=factor, backend=self.backend
        )
        return self.proj(out.flatten(3))

    def extra_repr(self) -> str:
        return (
            f"num_heads={self.num_heads}, kernel_size={self.kernel_size}, cosine={self.log_scale is not None}"
        )
