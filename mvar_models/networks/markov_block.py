"""A block of Markov-VAR (arXiv 2511.23334): RMS norms, rotated queries and keys, a gated feed-forward.

The position code is built like a 2-D rotary one, but the two features of a pair turn by different angles, one
by the row's, one by the column's. So it changes lengths and is not relative, and a textbook rotary code in
its place moves the logits by almost 1 %. Scores of normalised queries and keys must be taken after it:
attention that normalises inside the kernel cannot be used.

Shapes: B images, n tokens, C width, H heads of D features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvar_kernels.attention import neighborhood_attn
from mvar_kernels.module import MAX_LOG_SCALE
from mvar_models.config import MarkovVARConfig
from mvar_models.networks.layers import biased
from mvar_models.networks.state import BlockContext

RMS_EPS = 1e-6
_COSINE_EPS = 1e-12
_BASE = 10000.0


class GatedBlock(nn.Module):
    """Attention and feed-forward as residual branches, modulated by six vectors of width C per image.

    Both branches share one RMS norm.
    """

    def __init__(self, config: MarkovVARConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(config.width)
        self.attention = RotaryAttention(config)
        self.mlp = GatedFeedForward(config)
        self.modulation = nn.Linear(config.width, 6 * config.width)

    def forward(
        self, hidden: Tensor, condition: Tensor, path_keep: Tensor | None, context: BlockContext
    ) -> Tensor:
        """Run the block.

        Args:
            hidden: (B, n, C).
            condition: (B, C), SiLU of the class embedding.
            path_keep: (2, B) factors of the two branches, for stochastic depth.
            context: What all blocks share, the angles of the position code among it.
        """
        vectors = context.once(self, (condition, self.modulation), lambda: self._modulation(condition))
        gate1, gate2, scale1, scale2, shift1, shift2 = vectors
        if path_keep is not None:
            gate1, gate2 = gate1 * path_keep[0, :, None, None], gate2 * path_keep[1, :, None, None]
        hidden = hidden + self.attention(self.norm(hidden) * (1 + scale1) + shift1, context) * gate1
        return hidden + self.mlp(self.norm(hidden) * (1 + scale2) + shift2) * gate2

    def _modulation(self, condition: Tensor) -> tuple[Tensor, ...]:
        """Return two gates, two scales and two shifts, (B, 1, C) each."""
        return self.modulation(condition).unflatten(-1, (6, -1)).unsqueeze(1).unbind(2)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps), in float32, cast back and then times a weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        wide = hidden.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + RMS_EPS)
        return normed.to(hidden.dtype) * self.weight


class RotaryAttention(nn.Module):
    """Multi-head attention whose queries and keys are normalised, scaled and then rotated."""

    def __init__(self, config: MarkovVARConfig) -> None:
        super().__init__()
        width = config.width
        self.num_heads = config.num_heads
        self.scale = config.attention_scale
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        log_scale = torch.full((config.num_heads,), 4.0).log() if config.cosine_attention else None
        self.log_scale = None if log_scale is None else nn.Parameter(log_scale)
        self.proj = nn.Linear(width, width)

    def forward(self, hidden: Tensor, context: BlockContext) -> Tensor:
        """Attend: (B, n, C) -> (B, n, C)."""
        assert context.angles is not None
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = biased(self.qkv, hidden, bias)
        query, key, value = qkv.unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        if self.log_scale is not None:
            factor = self.log_scale.clamp_max(MAX_LOG_SCALE).exp()[:, None]
            query = F.normalize(query.float(), dim=-1, eps=_COSINE_EPS) * factor
            key = F.normalize(key.float(), dim=-1, eps=_COSINE_EPS)
        query, key = (rotate(vectors, *context.angles).to(value.dtype) for vectors in (query, key))
        attended = neighborhood_attn(
            query, key, value, context.neighborhood, scale=self.scale, backend=context.backend
        )
        return self.proj(attended.flatten(2))


class GatedFeedForward(nn.Module):
    """down(SiLU(gate x) * up x), without biases."""

    def __init__(self, config: MarkovVARConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.width, config.hidden_width, bias=False)
        self.up = nn.Linear(config.width, config.hidden_width, bias=False)
        self.down = nn.Linear(config.hidden_width, config.width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, n, C) -> (B, n, C)."""
        return self.down(F.silu(self.gate(hidden)) * self.up(hidden))


def rotary_angles(sides: Sequence[int], head_dim: int) -> tuple[Tensor, Tensor]:
    """Return the angles of the rows and of the columns of all tokens, (L, head_dim / 2) float32 each.

    All scales share the coordinates of the finest one, aligned at the top left corner.

    Args:
        sides: Grid side of each scale, coarse to fine.
        head_dim: Features per head.

    Raises:
        ValueError: `head_dim` is not a multiple of 4.
    """
    if head_dim % 4:
        raise ValueError(f"head_dim must be a multiple of 4 for the position code, got {head_dim}")
    quarter = head_dim // 4
    frequencies = _BASE ** (-4 * torch.arange(quarter, dtype=torch.float32, device="cpu") / head_dim)
    rows, columns = [], []
    for side in sides:
        # Divided before it is multiplied: float32 rounds the released positions in this order.
        places = torch.arange(side, dtype=torch.float32, device="cpu") / side * sides[-1]
        rows.append(places.repeat_interleave(side))
        columns.append(places.repeat(side))
    row, column = (torch.cat(parts)[:, None] * frequencies for parts in (rows, columns))
    return torch.cat([row, row], dim=1), torch.cat([column, column], dim=1)


def rotate(vectors: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Turn each pair (v1, v2) of features into (v1 cos row - v2 sin row, v2 cos column + v1 sin column).

    Args:
        vectors: (B, n, H, D); v1 is the first half of the features, v2 the second.
        row: (n, D / 2), from `rotary_angles`.
        column: (n, D / 2).
    """
    first, second = vectors.float().chunk(2, dim=-1)
    row, column = row[:, None], column[:, None]  # one for all heads
    turned = torch.cat(
        [first * row.cos() - second * row.sin(), second * column.cos() + first * column.sin()], dim=-1
    )
    return turned.to(vectors.dtype)
