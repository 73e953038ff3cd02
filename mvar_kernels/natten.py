"""NATTEN 0.21's functions and modules by these kernels: changing the import is the whole migration.

    from mvar_kernels.natten import NeighborhoodAttention2D, na2d

The signatures are NATTEN's. What tunes its kernels (backends, tile shapes, schedules) is accepted and
ignored, with one line in the log. Windows larger than an axis, and of 1, are legal here; docs/natten.md has
the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mvar_kernels.attention import neighborhood_attn, spatial_markov_attn
from mvar_kernels.neighborhood import Neighborhood, WindowBlock
from mvar_kernels.per_axis import Flags, Grid, as_flags, as_grid

__all__ = [
    "NeighborhoodAttention1D",
    "NeighborhoodAttention2D",
    "NeighborhoodAttention3D",
    "na1d",
    "na2d",
    "na3d",
]

logger = logging.getLogger("mvar_kernels")

_logged: set[str] = set()


def _log_ignored(**tuning: Any) -> None:
    """Log, once each, which arguments change nothing here."""
    given = {name for name, value in tuning.items() if value not in (None, False)} - _logged
    if given:
        _logged.update(given)
        logger.info("mvar_kernels.natten ignores what tunes NATTEN's kernels: %s", ", ".join(sorted(given)))


def _function(rank: int) -> Callable[..., Any]:
    def attend(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kernel_size: int | Grid,
        stride: int | Grid | None = 1,
        dilation: int | Grid | None = 1,
        is_causal: bool | Flags | None = False,
        scale: float | None = None,
        additional_keys: Tensor | None = None,
        additional_values: Tensor | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        backend: str | None = None,
        q_tile_shape: Grid | None = None,
        kv_tile_shape: Grid | None = None,
        backward_q_tile_shape: Grid | None = None,
        backward_kv_tile_shape: Grid | None = None,
        backward_kv_splits: Grid | None = None,
        backward_use_pt_reduction: bool = False,
        run_persistent_kernel: bool = True,
        kernel_schedule: Any = None,
        torch_compile: bool = False,
        return_lse: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        if not torch.compiler.is_compiling():
            _log_ignored(
                attention_kwargs=attention_kwargs,
                backend=backend,
                q_tile_shape=q_tile_shape,
                kv_tile_shape=kv_tile_shape,
                backward_q_tile_shape=backward_q_tile_shape,
                backward_kv_tile_shape=backward_kv_tile_shape,
                backward_kv_splits=backward_kv_splits,
                backward_use_pt_reduction=backward_use_pt_reduction,
                run_persistent_kernel=not run_persistent_kernel,
                kernel_schedule=kernel_schedule,
                torch_compile=torch_compile,
            )
        _check(rank, query, key)
        stride, dilation, is_causal = stride or 1, dilation or 1, is_causal or False
        # As in NATTEN, a scale of 0 is the default.
        scale = scale or None
        if additional_keys is None and additional_values is None:
            return spatial_markov_attn(
                query,
                key,
                value,
                kernel_size,
                stride=stride,
                dilation=dilation,
                is_causal=is_causal,
                scale=scale,
                return_lse=return_lse,
            )
        if additional_keys is None or additional_values is None:
            raise ValueError("additional_keys and additional_values must be given together")
        grid = tuple(query.shape[1:-2])
        keys, values = _beside(key, additional_keys, "keys"), _beside(value, additional_values, "values")
        window = Neighborhood.of_grids(grid, grid, kernel_size, stride, dilation, is_causal)
        neighborhood = _with_more_keys(window, keys.shape[1])
        out, lse = neighborhood_attn(
            query.flatten(1, rank), keys, values, neighborhood, scale=scale, return_lse=True
        )
        out, lse = out.unflatten(1, grid), lse.unflatten(1, grid)
        return (out, lse) if return_lse else out

    attend.__name__ = attend.__qualname__ = f"na{rank}d"
    attend.__doc__ = f"""Attend to windows around each query in {rank} dimensions: NATTEN's `na{rank}d`.

    Args:
        query: (B, *grid, heads, D).
        key: (B, *grid, key heads, D).
        value: (B, *grid, key heads, Dv).
        kernel_size: as `stride`, `dilation`, `is_causal` and `scale` for `mvar_kernels.spatial_markov_attn`.
        additional_keys: (B, n, key heads, D), which every query sees as well, in the same softmax.
        additional_values: (B, n, key heads, Dv).
        return_lse: also return the natural-log sum of exponentials (B, *grid, heads).

    All others tune NATTEN's kernels and are ignored.

    Returns:
        (B, *grid, heads, Dv).
    """
    return attend


def _check(rank: int, query: Tensor, key: Tensor) -> None:
    if query.dim() != rank + 3:
        raise ValueError(f"query must have {rank + 3} dimensions for na{rank}d, got {tuple(query.shape)}")
    if query.shape[1:-2] != key.shape[1:-2]:
        raise ValueError(
            "query and key must have one grid here (spatial_markov_attn takes unequal ones), "
            f"got {tuple(query.shape)} and {tuple(key.shape)}"
        )


def _beside(tensor: Tensor, more: Tensor, name: str) -> Tensor:
    """Return (B, L + n, heads, D): the tokens of (B, *grid, heads, D), then those of (B, n, heads, D)."""
    expected = tensor.shape[0], *tensor.shape[-2:]
    if more.dim() != 4 or (more.shape[0], *more.shape[-2:]) != expected:
        raise ValueError(
            f"additional_{name} must be (B, L, heads, D) with the batch, heads and width of {name}, "
            f"got {tuple(more.shape)} beside {tuple(tensor.shape)}"
        )
    return torch.cat([tensor.flatten(1, -3), more], dim=1)


def _with_more_keys(window: Neighborhood, num_keys: int) -> Neighborhood:
    """Let all queries of a grid see the keys behind those of the grid as well, in the same softmax."""
    block = window.blocks[0]
    more = (*(1,) * (block.rank - 1), num_keys - window.num_keys)
    extra = WindowBlock(0, block.query_grid, window.num_keys, more, more)
    return Neighborhood((block, extra) if more[-1] else (block,), window.num_queries, num_keys)


na1d, na2d, na3d = map(_function, (1, 2, 3))


class _NeighborhoodAttention(nn.Module):
    """Project to q, k, v, attend over windows, project back: (B, *grid, embed_dim) -> the same.

    Args:
        embed_dim: channels, a multiple of `num_heads`.
        num_heads: attention heads.
        kernel_size: as `stride`, `dilation` and `is_causal` for `mvar_kernels.spatial_markov_attn`.
        qkv_bias: whether the qkv projection has a bias.
        qk_scale: factor of the logits; default D^-0.5.
        proj_drop: probability of the dropout behind the output projection.

    Raises:
        ValueError: `embed_dim` is not a multiple of `num_heads`, or a window, stride or dilation is below 1.
    """

    rank: int

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        kernel_size: int | Grid,
        stride: int | Grid = 1,
        dilation: int | Grid = 1,
        is_causal: bool | Flags = False,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        if num_heads < 1 or embed_dim % num_heads:
            raise ValueError(f"embed_dim ({embed_dim}) must be a multiple of num_heads ({num_heads})")
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.head_dim = embed_dim // num_heads
        self.scale = qk_scale or self.head_dim**-0.5
        self.kernel_size = as_grid(kernel_size, self.rank, "kernel_size")
        self.stride = as_grid(stride, self.rank, "stride")
        self.dilation = as_grid(dilation, self.rank, "dilation")
        self.is_causal = as_flags(is_causal, self.rank, "is_causal")
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=qkv_bias)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != self.rank + 2 or x.shape[-1] != self.embed_dim:
            raise ValueError(
                f"x must have {self.rank + 2} dimensions, the last {self.embed_dim}, got {tuple(x.shape)}"
            )
        query, key, value = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(-3)
        out = spatial_markov_attn(
            query,
            key,
            value,
            self.kernel_size,
            stride=self.stride,
            dilation=self.dilation,
            is_causal=self.is_causal,
            scale=self.scale,
        )
        return self.proj_drop(self.proj(out.flatten(-2)))

    def extra_repr(self) -> str:
        return (
            f"head_dim={self.head_dim}, num_heads={self.num_heads}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, dilation={self.dilation}, is_causal={self.is_causal}"
        )


class NeighborhoodAttention1D(_NeighborhoodAttention):
    __doc__ = _NeighborhoodAttention.__doc__
    rank = 1


class NeighborhoodAttention2D(_NeighborhoodAttention):
    __doc__ = _NeighborhoodAttention.__doc__
    rank = 2


class NeighborhoodAttention3D(_NeighborhoodAttention):
    __doc__ = _NeighborhoodAttention.__doc__
    rank = 3
