"""One block of VAR and MVAR: attention and feed-forward, both modulated by the class (AdaLN).

Shapes: B images, n tokens, C width, H heads, D width of a head.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvar_kernels.attention import neighborhood_attn
from mvar_kernels.module import MAX_LOG_SCALE
from mvar_models.config import TransformerConfig
from mvar_models.networks.layers import biased, gelu, input_dtype, is_plain, multiply_add
from mvar_models.networks.state import BlockContext

NORM_EPS = 1e-6


class TransformerBlock(nn.Module):
    """Attention and feed-forward as residual branches, modulated by six vectors of width C per image.

    With shared AdaLN the vectors are computed once for all blocks and each block learns an offset; otherwise
    each block has a linear layer of its own.
    """

    def __init__(self, config: TransformerConfig, index: int) -> None:
        super().__init__()
        width = config.width
        self.attention = SelfAttention(config, index)
        self.mlp = FeedForward(config)
        if config.shared_adaln:
            self.modulation_offset = nn.Parameter(torch.zeros(6, width))
        else:
            self.modulation = nn.Linear(width, 6 * width)
        self.shared_adaln = config.shared_adaln

    def forward(
        self, hidden: Tensor, condition: Tensor, path_keep: Tensor | None, context: BlockContext
    ) -> Tensor:
        """Run the block.

        Args:
            hidden: (B, n, C).
            condition: (B, 6 C) with shared AdaLN, else SiLU of the class embedding, (B, C). While sampling it
                may have more rows than `hidden`, whose are the first.
            path_keep: (2, B) factors of the two branches, for stochastic depth.
            context: What all blocks share.
        """
        modulation = self.modulation_offset if self.shared_adaln else self.modulation
        vectors = context.once(self, (condition, modulation), lambda: self._modulation(condition))
        if condition.shape[0] != hidden.shape[0]:
            vectors = tuple(each[: hidden.shape[0]] for each in vectors)
        gate1, gate2, factor1, factor2, shift1, shift2 = vectors
        if path_keep is not None:
            gate1, gate2 = gate1 * path_keep[0, :, None, None], gate2 * path_keep[1, :, None, None]
        branch = self.attention(modulated_norm(hidden, factor1, shift1), context)
        hidden = multiply_add(branch, gate1, hidden)
        branch = self.mlp(modulated_norm(hidden, factor2, shift2))
        return multiply_add(branch, gate2, hidden)

    def _modulation(self, condition: Tensor) -> tuple[Tensor, ...]:
        """Return two gates, two factors (1 + scale) and two shifts, (B, 1, C) each."""
        if self.shared_adaln:
            modulation = condition.unflatten(-1, (6, -1)) + self.modulation_offset
        else:
            modulation = self.modulation(condition).unflatten(-1, (6, -1))
        gate1, gate2, scale1, scale2, shift1, shift2 = modulation.unsqueeze(1).unbind(2)
        return gate1, gate2, 1 + scale1, 1 + scale2, shift1, shift2


def modulated_norm(hidden: Tensor, factor: Tensor, shift: Tensor) -> Tensor:
    """Apply AdaLN to (B, n, C): LayerNorm without weights, times `factor`, plus `shift`, (B, 1, C) each."""
    return multiply_add(F.layer_norm(hidden, hidden.shape[-1:], eps=NORM_EPS), factor, shift, overwrite=True)


class SelfAttention(nn.Module):
    """Multi-head attention with packed qkv.

    With cosine attention each head learns the factor exp(min(log_scale, log 100)) of its logits.
    """

    def __init__(self, config: TransformerConfig, index: int) -> None:
        super().__init__()
        self.index = index
        self.num_heads = config.num_heads
        self.scale = config.attention_scale
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(config.width))
        self.v_bias = nn.Parameter(torch.zeros(config.width))
        log_scale = torch.full((config.num_heads,), math.log(4)) if config.cosine_attention else None
        self.log_scale = None if log_scale is None else nn.Parameter(log_scale)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, hidden: Tensor, context: BlockContext) -> Tensor:
        """Attend: (B, n, C) -> (B, n, C), over the cache's keys and values too if there is one."""
        parameters = self.q_bias, self.v_bias, self.log_scale
        bias, logit_scale = context.once(self, parameters, lambda: (self.bias(), self.logit_scale()))
        qkv = biased(self.qkv, hidden, bias)
        query, key, value = qkv.unflatten(-1, (3, self.num_heads, -1)).unbind(2)  # (B, n, H, D) views
        neighborhood = context.neighborhood
        if context.cache is not None:
            key, value = context.cache.extend(self.index, key, value, query, logit_scale)
            neighborhood = context.cache.neighborhood(neighborhood, key.shape[1])
        attended = neighborhood_attn(
            query,
            key,
            value,
            neighborhood,
            scale=self.scale,
            logit_scale=logit_scale,
            backend=context.backend,
        )
        return self.proj(attended.flatten(2))

    def bias(self) -> Tensor:
        """Return the bias (3 C,) of the packed projection."""
        # A bias of the keys would shift all scores of a query alike, so the released models have none.
        return torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])

    def logit_scale(self) -> Tensor | None:
        """Return the factors (H,) of cosine attention, or None for dot products."""
        return None if self.log_scale is None else self.log_scale.clamp_max(MAX_LOG_SCALE).exp()


class FeedForward(nn.Module):
    """Two linear layers with GELU (tanh approximation) between them."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        hidden = round(config.width * config.mlp_ratio)
        self.fc1 = nn.Linear(config.width, hidden)
        self.fc2 = nn.Linear(hidden, config.width)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, n, C) -> (B, n, C)."""
        inner = self.fc1(hidden.to(input_dtype(self.fc1)))
        return self.fc2(gelu(inner, overwrite=is_plain(self.fc1)))
