"""What a model carries from scale to scale while it samples."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor

S = TypeVar("S", bound="ScaleState")


@dataclass
class KVCache:
    """Keys and values of the scales drawn so far.

    Attributes:
        entries: (B, L, H, D) keys and values per block, by the block's index.
    """

    entries: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def extend(self, block: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append (B, n, H, D) keys and values to a block's, and return all of them so far."""
        if block in self.entries:
            old_key, old_value = self.entries[block]
            key, value = torch.cat([old_key, key], dim=1), torch.cat([old_value, value], dim=1)
        self.entries[block] = key, value
        return key, value


@dataclass
class ScaleState:
    """State of a batch between two scales; a model that carries more has a subclass with more fields.

    Attributes:
        class_embedding: (B, C), the condition of each row.
        cache: Keys and values of the coarser scales; None for models that do not attend to them.
    """

    class_embedding: Tensor
    cache: KVCache | None = None

    @property
    def carries(self) -> bool:
        """Whether a scale needs the steps of coarser scales; assumed of every subclass that says no other."""
        return self.cache is not None or type(self) is not ScaleState

    def first(self: S, rows: int) -> S:
        """Return the state of the first rows, for a step of these alone; only if it `carries` nothing."""
        return replace(self, class_embedding=self.class_embedding[:rows])

    def fork(self: S) -> S:
        """Return a copy that can take further steps without changing this state."""
        # `extend` replaces entries and never writes into their tensors, so both caches can share them.
        cache = None if self.cache is None else KVCache(dict(self.cache.entries))
        return replace(self, cache=cache)
