"""One block of the transformer: attention and feed-forward, both modulated by the class (AdaLN).

Shapes: B images, n tokens, C width, H heads, D width of a head.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvar_kernels.attention import neighborhood_attn
from mvar_kernels.module import MAX_LOG_SCALE
from mvar_kernels.pyramid import Neighborhood
from mvar_models.config import TransformerConfig
from mvar_models.networks.inference import add_gated, factored_norm, gelu
from mvar_models.networks.plain import is_plain, is_untouched
from mvar_models.networks.recompute import after_attention, linear_dtype, modulated_linear, modulated_norm
from mvar_models.networks.state import Constants, KVCache


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

    def forward(
        self, hidden: Tensor, neighborhood: Neighborhood, backend: str, cache: KVCache | None = None
    ) -> Tensor:
        """Attend: (B, n, C) -> (B, n, C), calling each layer; usual layers are read by the block instead."""
        qkv = self.qkv(hidden)
        qkv = qkv + self.bias().to(qkv.dtype)
        return self.proj(self.attend(qkv, neighborhood, backend, self.logit_scale(), cache))

    def bias(self) -> Tensor:
        """Return the bias (3 C,) of the packed projection."""
        # A bias of the keys would shift all scores of a query alike, so the released models have none.
        return torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])

    def logit_scale(self) -> Tensor | None:
        """Return the factors (H,) of cosine attention, or None for dot products."""
        return None if self.log_scale is None else self.log_scale.clamp_max(MAX_LOG_SCALE).exp()

    def attend(
        self,
        qkv: Tensor,
        neighborhood: Neighborhood,
        backend: str,
        logit_scale: Tensor | None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Attend with packed qkv (B, n, 3 C); returns (B, n, C), heads concatenated, before `proj`."""
        query, key, value = qkv.unflatten(-1, (3, self.num_heads, -1)).unbind(2)  # (B, n, H, D) views
        if cache is not None:
            key, value = cache.extend(self.index, key, value)
        return neighborhood_attn(
            query, key, value, neighborhood, scale=self.scale, logit_scale=logit_scale, backend=backend
        ).flatten(2)


class FeedForward(nn.Module):
    """Two linear layers with GELU (tanh approximation) between them."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        hidden = round(config.width * config.mlp_ratio)
        self.fc1 = nn.Linear(config.width, hidden)
        self.fc2 = nn.Linear(hidden, config.width)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, n, C) -> (B, n, C)."""
        return self.fc2(gelu(self.fc1(hidden), in_place=is_plain(self.fc1)))


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
        self,
        hidden: Tensor,
        condition: Tensor,
        neighborhood: Neighborhood,
        backend: str,
        path_keep: Tensor | None = None,
        cache: KVCache | None = None,
        constants: Constants | None = None,
    ) -> Tensor:
        """Run the block.

        Args:
            hidden: (B, n, C).
            condition: (B, 6 C) with shared AdaLN, else SiLU of the class embedding, (B, C).
            neighborhood: Who attends to whom.
            backend: Attention backend, see `mvar_kernels`.
            path_keep: (2, B) factors of the two branches, for stochastic depth.
            cache: Extended by this block's keys and values; queries then attend to all of them.
            constants: While sampling: keeps what is the same at every scale. `condition` may then have more
                rows than `hidden`, whose are the first.
        """
        if constants is not None and not torch.is_grad_enabled():
            return self._sample(hidden, condition, neighborhood, backend, cache, constants)
        gate1, gate2, scale1, scale2, shift1, shift2 = self._modulation(condition)
        if path_keep is not None:
            gate1, gate2 = gate1 * path_keep[0, :, None, None], gate2 * path_keep[1, :, None, None]
        attention, mlp = self.attention, self.mlp
        if self._is_plain():
            qkv = modulated_linear(hidden, scale1, shift1, attention.qkv.weight, attention.bias())
            attended = attention.attend(qkv, neighborhood, backend, attention.logit_scale(), cache)
            return after_attention(
                hidden, attended, gate1, attention.proj, scale2, shift2, mlp.fc1, mlp.fc2, gate2
            )
        # What was replaced or hooked must be called, so backward keeps what autograd keeps.
        normed = modulated_norm(hidden, scale1, shift1)
        hidden = hidden + attention(normed, neighborhood, backend, cache) * gate1
        return hidden + mlp(modulated_norm(hidden, scale2, shift2)) * gate2

    def _is_plain(self) -> bool:
        """Return whether the weights of all layers may be read instead of calling them."""
        attention, mlp = self.attention, self.mlp
        return (
            is_untouched(attention, SelfAttention)
            and is_untouched(mlp, FeedForward)
            and is_plain(attention.qkv, attention.proj, mlp.fc1, mlp.fc2)
        )

    def _modulation(self, condition: Tensor) -> tuple[Tensor, ...]:
        """Return two gates, two scales and two shifts, (B, 1, C) each."""
        if self.shared_adaln:
            modulation = condition.unflatten(-1, (6, -1)) + self.modulation_offset
        else:
            modulation = self.modulation(condition).unflatten(-1, (6, -1))
        return modulation.unsqueeze(1).unbind(2)

    def _sample(
        self,
        hidden: Tensor,
        condition: Tensor,
        neighborhood: Neighborhood,
        backend: str,
        cache: KVCache | None,
        constants: Constants,
    ) -> Tensor:
        """Return what `forward` returns without gradients, bit for bit, in fewer and smaller steps."""
        attention, mlp = self.attention, self.mlp

        def compute() -> tuple[tuple[Tensor, ...], Tensor, Tensor | None]:
            gate1, gate2, scale1, scale2, shift1, shift2 = self._modulation(condition)
            vectors = gate1, gate2, 1 + scale1, 1 + scale2, shift1, shift2
            return vectors, attention.bias(), attention.logit_scale()

        modulation = self.modulation_offset if self.shared_adaln else self.modulation
        made_from = condition, modulation, attention.q_bias, attention.v_bias, attention.log_scale
        vectors, bias, logit_scale = constants.once(self, made_from, compute)
        gate1, gate2, factor1, factor2, shift1, shift2 = (each[: hidden.shape[0]] for each in vectors)
        plain = self._is_plain()
        normed = factored_norm(hidden, factor1, shift1)
        if plain:
            weight = attention.qkv.weight
            qkv = F.linear(normed.to(linear_dtype(weight)), weight, bias)
            branch = attention.proj(attention.attend(qkv, neighborhood, backend, logit_scale, cache))
        else:
            branch = attention(normed, neighborhood, backend, cache)
        hidden = add_gated(hidden, branch, gate1, in_place=plain)
        normed = factored_norm(hidden, factor2, shift2)
        branch = mlp(normed.to(linear_dtype(mlp.fc1.weight)) if plain else normed)
        return add_gated(hidden, branch, gate2, in_place=plain)
