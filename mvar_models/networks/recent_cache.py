"""Keys and values of the scales that the next one still attends to, while an adjacent-scale MVAR samples.

Buffers are allocated once, so that nothing depends on data. At d16, 256 px and one previous scale they hold
169 tokens per block instead of VAR's 424, and one workspace of 425 tokens is shared by all blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mvar_kernels import Pyramid
from mvar_models.networks.state import KVCache

Pair = tuple[Tensor, Tensor]


class RecentCache(KVCache):
    """Keeps of each block the scales that the next scale sees, and forgets the others.

    Keys and values that a block attends to lie side by side in a workspace that all blocks share; what the
    next scale needs of them is copied to the block's own buffer.

    Args:
        pyramid: Which scales see each other.
    """

    def __init__(self, pyramid: Pyramid) -> None:
        super().__init__()
        self.pyramid = pyramid
        # The next scale of each block.
        self._scale: dict[int, int] = {}
        self._shared: Pair | None = None

    def extend(self, block: int, key: Tensor, value: Tensor) -> Pair:
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
            buffers = self._buffers.get(block) or self._allocate_pair(key, self._most_kept())
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
            return torch.cat([before[0], key], dim=1), torch.cat([before[1], value], dim=1)
        if self._shared is None:
            self._shared = self._allocate_pair(key, self._most_seen())
        start, stop = before[0].shape[1], before[0].shape[1] + key.shape[1]
        for shared, old, new in zip(self._shared, before, (key, value)):
            shared[:, :start] = old
            shared[:, start:stop] = new
        return self._shared[0][:, :stop], self._shared[1][:, :stop]

    @staticmethod
    def _allocate_pair(like: Tensor, tokens: int) -> Pair:
        batch, _, heads, dim = like.shape
        return like.new_empty(batch, tokens, heads, dim), like.new_empty(batch, tokens, heads, dim)

    def _tokens(self, first: int, stop: int) -> int:
        """Count the tokens of the scales first .. stop - 1."""
        return self.pyramid.scale_slice(stop - 1).stop - self.pyramid.offsets[first]

    def _most_kept(self) -> int:
        scales = range(1, self.pyramid.num_scales)
        return max(self._tokens(self.pyramid.first_seen(scale), scale) for scale in scales)

    def _most_seen(self) -> int:
        scales = range(self.pyramid.num_scales)
        return max(self._tokens(self.pyramid.first_seen(scale), scale + 1) for scale in scales)
