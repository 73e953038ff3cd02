"""What a model carries from scale to scale while it samples."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mvar_kernels import Pyramid
from mvar_kernels.pyramid import Neighborhood
from mvar_models.networks.layers import is_plain

Pair = tuple[Tensor, Tensor]  # keys and values
R = TypeVar("R")
S = TypeVar("S", bound="ScaleState")


@dataclass
class KVCache:
    """Keys and values of the scales drawn so far.

    With the number of tokens known, each block has a buffer that is allocated once. Nobody reads the last
    scale's keys and values after it, so the buffers leave it out: while a block computes it, they lie behind
    the others in a workspace that all blocks share (the first block's buffer), and the block's entry goes.
    Without, keys and values are concatenated.

    Attributes:
        entries: (B, n, H, D) keys and values per block so far, by the block's index.
        length: Tokens of all scales; 0 if not known.
        last: Tokens of the last scale.
    """

    entries: dict[int, Pair] = field(default_factory=dict)
    length: int = 0
    last: int = 0
    # Buffers that no fork reads, so that this cache may write into them.
    _buffers: dict[int, Pair] = field(default_factory=dict, repr=False)
    _workspace: int | None = field(default=None, repr=False)

    def extend(
        self, block: int, key: Tensor, value: Tensor, query: Tensor | None = None,
        logit_scale: Tensor | None = None,
    ) -> Pair:  # fmt: skip
        """Append (B, n, H, D) keys and values to a block's, and return all that it attends to.

        What is returned may be overwritten when another block is extended. The queries (B, n, H, D) and the
        factors of cosine attention (H,) are for caches that choose what to keep.
        """
        before = self.entries.get(block)
        start = 0 if before is None else before[0].shape[1]
        stop = start + key.shape[1]
        if before is not None and stop == self.length:
            return self._finish(block, key, value)
        # Autograd would keep what a buffer is about to lose.
        if stop > self.length - self.last or torch.is_grad_enabled():
            entry = concatenated(before, key, value)
        else:
            buffers = self._buffers.get(block) or self._allocate(block, key)
            for buffer, new in zip(buffers, (key, value)):
                buffer[:, start:stop] = new
            entry = buffers[0][:, :stop], buffers[1][:, :stop]
        self.entries[block] = entry
        return entry

    def neighborhood(self, whole: Neighborhood, num_keys: int) -> Neighborhood:
        """Return who attends to whom in a block of that many keys; `whole` is of a cache that keeps all."""
        return whole

    def fork(self) -> KVCache:
        """Return a cache that goes its own way; neither writes into what both hold."""
        self._buffers, self._workspace = {}, None
        return KVCache(dict(self.entries), self.length, self.last)

    def num_bytes(self) -> int:
        """Count the memory of keys and values, allocated ahead or not."""
        held = [
            *self._buffers.values(),
            *(e for block, e in self.entries.items() if block not in self._buffers),
        ]
        return sum(each.untyped_storage().nbytes() for pair in held for each in pair)

    def _allocate(self, block: int, like: Tensor) -> Pair:
        """Return new buffers for a block, with what the block has already."""
        if self._workspace is None and not self.entries:
            self._workspace = block
        tokens = self.length if block == self._workspace else self.length - self.last
        buffers = _new_pair(like, tokens)
        for buffer, old in zip(buffers, self.entries.get(block, ())):
            buffer[:, : old.shape[1]] = old
        self._buffers[block] = buffers
        return buffers

    def _finish(self, block: int, key: Tensor, value: Tensor) -> Pair:
        """Return all keys and values of a block at the last scale, and forget them."""
        before = self.entries.pop(block)
        if block != self._workspace:
            self._buffers.pop(block, None)
        workspace = None if self._workspace is None else self._buffers[self._workspace]
        # The workspace is the first block's buffer, which is free once that block has passed.
        if workspace is None or torch.is_grad_enabled() or self._workspace in self.entries:
            whole = concatenated(before, key, value)
        else:
            start = before[0].shape[1]
            for buffer, old, new in zip(workspace, before, (key, value)):
                if block != self._workspace:
                    buffer[:, :start] = old
                buffer[:, start:] = new
            whole = workspace
        if not self.entries:
            self._buffers, self._workspace = {}, None
        return whole


class RecentCache(KVCache):
    """Keeps of each block the scales that the next scale sees, and forgets the others.

    Keys and values that a block attends to lie side by side in a workspace that all blocks share; what the
    next scale needs of them is copied to the block's own buffer. At d16, 256 px and one previous scale that
    is a workspace of 425 tokens and 169 tokens per block, instead of VAR's 424.

    Args:
        pyramid: Which scales see each other.
    """

    def __init__(self, pyramid: Pyramid) -> None:
        super().__init__()
        self.pyramid = pyramid
        # The next scale of each block.
        self._scale: dict[int, int] = {}
        self._shared: Pair | None = None

    def extend(
        self, block: int, key: Tensor, value: Tensor, query: Tensor | None = None,
        logit_scale: Tensor | None = None,
    ) -> Pair:  # fmt: skip
        scale = self._scale.get(block, 0)
        before = self.entries.pop(block, None)
        whole = self._side_by_side(before, key, value)
        self._scale[block] = scale + 1
        if scale + 1 == self.pyramid.num_scales:
            self._buffers.pop(block, None)
            if not self.entries:
                self._shared = None
            return whole
        kept = self._tokens(self.pyramid.first_seen(scale + 1), scale + 1)
        needed = whole[0][:, -kept:], whole[1][:, -kept:]
        if not torch.is_grad_enabled():
            buffers = self._buffers.get(block) or _new_pair(key, self._most_tokens(own=0))
            self._buffers[block] = buffers
            for buffer, new in zip(buffers, needed):
                buffer[:, :kept] = new
            needed = buffers[0][:, :kept], buffers[1][:, :kept]
        self.entries[block] = needed
        return whole

    def fork(self) -> RecentCache:
        self._buffers, self._shared = {}, None
        twin = RecentCache(self.pyramid)
        twin.entries, twin._scale = dict(self.entries), dict(self._scale)
        return twin

    def num_bytes(self) -> int:
        shared = [] if self._shared is None else list(self._shared)
        return super().num_bytes() + sum(each.untyped_storage().nbytes() for each in shared)

    def _side_by_side(self, before: Pair | None, key: Tensor, value: Tensor) -> Pair:
        if before is None:
            return key, value
        # Autograd would keep what the workspace is about to lose.
        if torch.is_grad_enabled():
            return concatenated(before, key, value)
        if self._shared is None:
            self._shared = _new_pair(key, self._most_tokens(own=1))
        start, stop = before[0].shape[1], before[0].shape[1] + key.shape[1]
        for shared, old, new in zip(self._shared, before, (key, value)):
            shared[:, :start] = old
            shared[:, start:stop] = new
        return self._shared[0][:, :stop], self._shared[1][:, :stop]

    def _tokens(self, first: int, stop: int) -> int:
        """Count the tokens of the scales first .. stop - 1."""
        return self.pyramid.scale_slice(stop - 1).stop - self.pyramid.offsets[first]

    def _most_tokens(self, own: int) -> int:
        """Count the most tokens that a scale sees, with (1) or without (0) its own."""
        scales = range(1, self.pyramid.num_scales)
        return max(self._tokens(self.pyramid.first_seen(scale), scale + own) for scale in scales)


def _new_pair(like: Tensor, tokens: int) -> Pair:
    batch, _, heads, dim = like.shape
    return like.new_empty(batch, tokens, heads, dim), like.new_empty(batch, tokens, heads, dim)


def concatenated(before: Pair | None, key: Tensor, value: Tensor) -> Pair:
    if before is None:
        return key, value
    return torch.cat([before[0], key], dim=1), torch.cat([before[1], value], dim=1)


@dataclass
class Constants:
    """Values of a batch that every scale needs alike: each is computed at the first and kept.

    Those are what the class alone decides, AdaLN's vectors of each block and of the head, and what no image
    decides, packed biases and factors of attention. They are kept as long as what they were made from stays:
    a callback may change weights between two scales. Computing AdaLN at every scale would read a third of the
    weights again: d16 at batch 1 reads 4.4 GB of weights per image in bfloat16 instead of 6.2.

    Attributes:
        class_embedding: (B, C) of all rows, also while a scale computes some of them.
        values: What has been computed.
    """

    class_embedding: Tensor
    values: dict[Hashable, tuple[list[_Mark], Any]] = field(default_factory=dict, repr=False)

    def once(
        self, name: Hashable, made_from: Sequence[nn.Module | Tensor | None], compute: Callable[[], R]
    ) -> R:
        """Return what `compute` returned when this name was first asked for.

        Args:
            name: Of the value.
            made_from: The layers and tensors that it is computed from. If one of them has changed since, or
                is a layer that was replaced or hooked, or if gradients are recorded, it is computed anew.
            compute: Computes it.
        """
        marks = None if torch.is_grad_enabled() else _marks(made_from)
        if marks is None:
            return compute()
        kept = self.values.get(name)
        if kept is None or not _same(kept[0], marks):
            kept = self.values[name] = marks, compute()
        value: R = kept[1]
        return value


# A tensor, where its values lie, and how often they were changed in place. The tensor itself is kept, as
# another one could take the identity and the place of one that is gone.
_Mark = tuple[Tensor, int, int]


def _marks(made_from: Sequence[nn.Module | Tensor | None]) -> list[_Mark] | None:
    """Return the marks of all tensors, or None if changes cannot be told."""
    if torch.compiler.is_compiling():
        return None
    tensors: list[Tensor] = []
    for part in made_from:
        if isinstance(part, nn.Module):
            if not is_plain(part):
                return None
            tensors += part.parameters()
        elif part is not None:
            tensors.append(part)
    # What was made in inference mode has no count of changes; nothing of ours changes it.
    return [(each, each.data_ptr(), 0 if each.is_inference() else each._version) for each in tensors]


def _same(kept: list[_Mark], marks: list[_Mark]) -> bool:
    return len(kept) == len(marks) and all(
        old[0] is new[0] and old[1:] == new[1:] for old, new in zip(kept, marks)
    )


@dataclass
class ScaleState:
    """State of a batch between two scales; a model that carries more has a subclass with more fields.

    Attributes:
        class_embedding: (B, C), the condition of each row.
        cache: Keys and values of the coarser scales; None for models that do not attend to them.
        constants: What is the same at every scale; None becomes an empty one.
    """

    class_embedding: Tensor
    cache: KVCache | None = None
    constants: Constants = None  # type: ignore[assignment]  # never None after __post_init__

    def __post_init__(self) -> None:
        if self.constants is None:
            self.constants = Constants(self.class_embedding)

    @property
    def carries(self) -> bool:
        """Whether a scale needs the steps of coarser scales; assumed of every subclass that says no other."""
        return self.cache is not None or type(self) is not ScaleState

    def first(self: S, rows: int) -> S:
        """Return the state of the first rows, for a step of these alone; only if it `carries` nothing."""
        return replace(self, class_embedding=self.class_embedding[:rows])

    def fork(self: S) -> S:
        """Return a copy that can take further steps without changing this state."""
        return replace(self, cache=None if self.cache is None else self.cache.fork())


@dataclass(frozen=True)
class BlockContext:
    """What all blocks of one pass share, besides the condition.

    Attributes:
        neighborhood: Who attends to whom.
        backend: Backend of the attention, see `mvar_kernels`.
        state: Of the batch, while it is sampled; None in training.
        angles: Position code of the n tokens, of the blocks that rotate queries and keys (`rotary_angles`).
    """

    neighborhood: Neighborhood
    backend: str
    state: ScaleState | None = None
    angles: Pair | None = None

    @property
    def cache(self) -> KVCache | None:
        """The keys and values that a block extends by its own and attends to, or None."""
        return None if self.state is None else self.state.cache

    def once(
        self, name: Hashable, made_from: Sequence[nn.Module | Tensor | None], compute: Callable[[], R]
    ) -> R:
        """Return what `compute` returns, while sampling as kept at the first scale (`Constants.once`)."""
        return compute() if self.state is None else self.state.constants.once(name, made_from, compute)
