"""Tokens of dilated blocks in the order in which their windows are ranges (`neighborhood.AxisWindows`).

`tiled` works on boxes of places. Where an axis is dilated, whole tensors are brought into the order of places
before, and results back after: three copies more than the tiles make of every key.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mvar_kernels import caches
from mvar_kernels.pyramid import Neighborhood


class Places(NamedTuple):
    """The token at each place, for queries (Lq,) and keys (Lk,)."""

    queries: Tensor
    keys: Tensor


def places_of(neighborhood: Neighborhood, device: torch.device) -> Places | None:
    """Return the order of places; None where it is that of the tokens."""
    if not any(block.dilation for block in neighborhood.blocks):
        return None
    return _places(neighborhood, device)


@caches.tables(32 << 20)
def _places(neighborhood: Neighborhood, device: torch.device) -> Places:
    queries, keys = np.arange(neighborhood.num_queries), np.arange(neighborhood.num_keys)
    for block in neighborhood.blocks:
        if block.dilation:
            grid = np.arange(block.num_keys).reshape(block.key_grid)
            order = grid[np.ix_(*(block.key_order(axis) for axis in range(block.rank)))].ravel()
            queries[block.query_slice] = block.query_offset + order
            keys[block.key_slice] = block.key_offset + order
    return Places(torch.from_numpy(queries).to(device), torch.from_numpy(keys).to(device))


def in_places(tensor: Tensor, tokens: Tensor) -> Tensor:
    """Bring (B, L, ...) into the order of places."""
    # One batch element at a time: index_select on a CPU is a hundred times slower along an inner axis.
    return torch.stack([element.index_select(0, tokens) for element in tensor.flatten(2)]).view(tensor.shape)


def in_tokens(tensor: Tensor, tokens: Tensor) -> Tensor:
    """Bring (B, L, ...) back into the order of tokens."""
    return in_places(tensor, tokens.argsort())
