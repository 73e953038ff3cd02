"""Markov-VAR (arXiv 2511.23334): every scale attends inside itself and knows one vector of the scales before.

The vector is pooled by attention from the inputs of the last three scales and mixed into every token before
the first block. As released, the unconditional half of guided sampling gets the history of the conditional
one: its class reaches the modulation, the head and the coarsest scale alone.

A block has RMS norms, rotated queries and keys, and a gated feed-forward. The position code is built like a
2-D rotary one, but the two features of a pair turn by different angles, one by the row's, one by the
column's. So it changes lengths and is not relative, and a textbook rotary code in its place moves the logits
by almost 1 %. Scores of normalised queries and keys must be taken after it: attention that normalises inside
the kernel cannot be used.

Shapes: B images, n tokens of a scale, L tokens of all scales, C width, H heads of D features, V codes, z
channels of a code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvar_kernels.attention import neighborhood_attn
from mvar_kernels.module import MAX_LOG_SCALE
from mvar_models.config import MarkovVARConfig
from mvar_models.networks.layers import biased, input_dtype
from mvar_models.networks.state import BlockContext, ScaleState
from mvar_models.networks.transformer import ScaleTransformer

_SCALE_FEATURES = 256
_SCALE_BASE = 10000.0
_GATE_FACTOR, _OTHER_FACTOR = 1e-5, 0.5  # of the initial modulation weights
HISTORY_HEAD_DIM = 128

S = TypeVar("S", bound="MarkovState")


class MarkovVAR(ScaleTransformer):
    """Attends within scales; the scales before reach it through its input and a history vector.

    Any consecutive scales can be computed by themselves from `scale_inputs`, which holds the inputs of all.
    """

    config: MarkovVARConfig
    config_class = MarkovVARConfig
    skips_guidance_at = 0.0
    row_angles: Tensor
    column_angles: Tensor
    scale_features: Tensor

    def add_body(self, config: MarkovVARConfig) -> None:
        width = config.width
        self.shared_modulation = None
        self.scale_embedding = nn.Sequential(
            nn.Linear(_SCALE_FEATURES, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.input_norm = nn.LayerNorm(width)
        self.history_pool = HistoryPool(width)
        self.condition_norm = nn.LayerNorm(width)
        self.fusion = nn.Linear(2 * width, width)
        self.blocks = nn.ModuleList(GatedBlock(config) for _ in range(config.depth))
        self.head_norm = RMSNorm(width)

    def reset_buffers(self) -> None:
        device = self.device
        row, column = rotary_angles(self.config.sides, self.config.head_dim)
        self.register_buffer("row_angles", row.to(device), persistent=False)
        self.register_buffer("column_angles", column.to(device), persistent=False)
        features = sinusoids(len(self.config.sides))
        self.register_buffer("scale_features", features.to(device), persistent=False)

    @torch.no_grad()
    def init_weights(self) -> None:
        config = self.config
        nn.init.trunc_normal_(self.history_pool.query, std=self._init_linears())
        for block in self.blocks:
            assert isinstance(block, GatedBlock)
            block.attention.proj.weight /= math.sqrt(2 * config.depth)
            block.mlp.down.weight /= math.sqrt(2 * config.depth)
            six = block.modulation.weight.view(6, config.width, config.width)
            six[:2] *= _GATE_FACTOR
            six[2:] *= _OTHER_FACTOR

    def history_window(self, scale: int) -> range:
        """Return the scales whose inputs the history of `scale` pools; the coarsest has no input."""
        return range(max(1, scale - self.config.history_scales + 1), scale + 1)

    def new_state(self, labels: Tensor) -> MarkovState:
        embedding = self.class_embedding(labels)
        return MarkovState(embedding, history_class=embedding)

    def new_guided_state(self, labels: Tensor) -> MarkovState:
        state = super().new_guided_state(labels)
        assert isinstance(state, MarkovState)
        # As released: unconditional rows know the history of their image, its class included.
        state.history_class = self.class_embedding(labels).repeat(2, 1)
        return state

    def step(self, state: ScaleState, inputs: Tensor, scale: int) -> Tensor:
        assert isinstance(state, MarkovState)
        level = self.levels()[scale]
        if scale == 0:
            hidden = state.class_embedding[:, None] + level
        else:
            tokens = self.embed_inputs(inputs)
            state.history = [*state.history, self.history_pool.entry(tokens)][-self.config.history_scales :]
            pooled = self.history_pool(HistoryEntry.join(state.history))
            hidden = self.fuse(tokens, pooled, state.history_class) + level
        scales = range(scale, scale + 1)
        return self.run_blocks(
            hidden, state.class_embedding, self.neighborhood(scales), state=state, angles=self._angles(scales)
        )

    def hidden_states(
        self, labels: Tensor, scale_inputs: Tensor, scales: range, path_keep: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        self._check_inputs(labels, scale_inputs)
        class_embedding = self.class_embedding(labels)
        levels, parts = self.levels(), []
        if scales.start == 0:
            parts.append(class_embedding[:, None] + levels[0])
        fused = range(max(1, scales.start), scales.stop)
        if fused:
            first = self.history_window(fused.start).start
            tokens = self.embed_inputs(scale_inputs[:, self._inputs_of(range(first, scales.stop))])
            entry = self.history_pool.entry(tokens)
            for scale in fused:
                pooled = self.history_pool(entry.part(self._inputs_of(self.history_window(scale), first)))
                own = tokens[:, self._inputs_of(range(scale, scale + 1), first)]
                parts.append(self.fuse(own, pooled, class_embedding) + levels[scale])
        hidden = torch.cat(parts, dim=1)
        neighborhood, angles = self.neighborhood(scales), self._angles(scales)
        return self.run_blocks(
            hidden, class_embedding, neighborhood, path_keep, angles=angles
        ), class_embedding

    def _inputs_of(self, scales: range, first: int = 1) -> slice:
        """Return where the inputs of `scales` lie among those of the scales from `first` on."""
        tokens, before = self.tokens_of(scales), self.pyramid.offsets[first]
        return slice(tokens.start - before, tokens.stop - before)

    def levels(self) -> Tensor:
        """Return one vector per scale, (S, C)."""
        return self.scale_embedding(self.scale_features.to(input_dtype(self.scale_embedding)))

    def embed_inputs(self, inputs: Tensor) -> Tensor:
        """(B, n, z) -> (B, n, C)."""
        return self.input_norm(self.token_embedding(inputs.to(input_dtype(self.token_embedding))))

    def fuse(self, tokens: Tensor, pooled: Tensor, history_class: Tensor) -> Tensor:
        """Mix the tokens of a scale (B, n, C) with its history (B, C) and the class (B, C)."""
        condition = self.condition_norm(pooled + history_class)[:, None].expand_as(tokens)
        return self.fusion(torch.cat([tokens, condition], dim=-1))

    def _angles(self, scales: range) -> tuple[Tensor, Tensor]:
        tokens = self.tokens_of(scales)
        return self.row_angles[tokens], self.column_angles[tokens]

    def normed_for_head(self, hidden: Tensor) -> Tensor:
        return self.head_norm(hidden)


@dataclass
class MarkovState(ScaleState):
    """What Markov-VAR carries from scale to scale.

    Attributes:
        history_class: (B, C), the class embeddings that the history is mixed with.
        history: What the pool needs of the last scales' inputs, oldest first.
    """

    history_class: Tensor = field(kw_only=True)
    history: list[HistoryEntry] = field(default_factory=list)

    def fork(self: S) -> S:
        return replace(super().fork(), history=list(self.history))


@dataclass(frozen=True)
class HistoryEntry:
    """What the pool keeps of the tokens of one scale or several.

    Attributes:
        scores: (B, n, H) float32, the query's scores.
        values: (B, n, H, D).
    """

    scores: Tensor
    values: Tensor

    def part(self, tokens: slice) -> HistoryEntry:
        """Return what is kept of some of the tokens."""
        return HistoryEntry(self.scores[:, tokens], self.values[:, tokens])

    @staticmethod
    def join(entries: list[HistoryEntry]) -> HistoryEntry:
        """Concatenate entries along their tokens."""
        return HistoryEntry(
            torch.cat([each.scores for each in entries], dim=1),
            torch.cat([each.values for each in entries], dim=1),
        )


class HistoryPool(nn.Module):
    """Pools tokens into one vector by attention with a learned query per head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        if width % HISTORY_HEAD_DIM:
            raise ValueError(
                f"width must be a multiple of {HISTORY_HEAD_DIM} for the history pool, got {width}"
            )
        self.num_heads = width // HISTORY_HEAD_DIM
        self.query = nn.Parameter(torch.empty(self.num_heads, HISTORY_HEAD_DIM))
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def entry(self, tokens: Tensor) -> HistoryEntry:
        """Return scores and values of tokens (B, n, C), for `forward`; a scale's serve several pools."""
        key, value = self.key_value(tokens).unflatten(-1, (2, self.num_heads, HISTORY_HEAD_DIM)).unbind(2)
        value = value + self.v_bias.view(self.num_heads, HISTORY_HEAD_DIM)
        scores = (key.float() * self.query.float()).sum(-1) * HISTORY_HEAD_DIM**-0.5
        return HistoryEntry(scores, value)

    def forward(self, entry: HistoryEntry) -> Tensor:
        """Pool the tokens of an entry into (B, C)."""
        weights = entry.scores.softmax(dim=1)
        pooled = (weights[..., None] * entry.values.float()).sum(dim=1)
        return self.proj(pooled.flatten(1).to(entry.values.dtype))


def sinusoids(count: int) -> Tensor:
    """Return cosines, then sines, of 0 .. count - 1 at 128 frequencies: (count, 256) float32."""
    half = _SCALE_FEATURES // 2
    frequencies = torch.exp(
        -math.log(_SCALE_BASE) * torch.arange(half, dtype=torch.float32, device="cpu") / half
    )
    angles = torch.arange(count, dtype=torch.float32, device="cpu")[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


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
