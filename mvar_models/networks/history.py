"""Markov-VAR's history vector (arXiv 2511.23334): what a scale knows of the scales before it.

One learned query per head attends to the inputs of the last few scales, the scale's own among them. The
result is one vector per image and scale.

Shapes: B images, n tokens of a scale, L tokens of all scales, C width, H heads of D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

HEAD_DIM = 128


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
        if width % HEAD_DIM:
            raise ValueError(f"width must be a multiple of {HEAD_DIM} for the history pool, got {width}")
        self.num_heads = width // HEAD_DIM
        self.query = nn.Parameter(torch.empty(self.num_heads, HEAD_DIM))
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def entry(self, tokens: Tensor) -> HistoryEntry:
        """Return scores and values of tokens (B, n, C), for `forward`; a scale's serve several pools."""
        key, value = self.key_value(tokens).unflatten(-1, (2, self.num_heads, HEAD_DIM)).unbind(2)
        value = value + self.v_bias.view(self.num_heads, HEAD_DIM)
        scores = (key.float() * self.query.float()).sum(-1) * HEAD_DIM**-0.5
        return HistoryEntry(scores, value)

    def forward(self, entry: HistoryEntry) -> Tensor:
        """Pool the tokens of an entry into (B, C)."""
        weights = entry.scores.softmax(dim=1)
        pooled = (weights[..., None] * entry.values.float()).sum(dim=1)
        return self.proj(pooled.flatten(1).to(entry.values.dtype))
