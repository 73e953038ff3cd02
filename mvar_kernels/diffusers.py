"""Our attention in diffusers' LTX-2.5 video decoder, without the mask that its own processor builds.

`LTX2VideoDiffusionDecoderModel` (diffusers 0.42) has neighborhood attention with NATTEN's windows in three
dimensions. Its FlexAttention processor builds a block mask, by its docstring 167 GiB for a stage of 69 x 64 x
96 tokens; its NATTEN processor needs a GPU and a kernel from the Hub.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mvar_kernels.attention import spatial_markov_attn


class NeighborhoodProcessor:
    """An attention processor: `model.set_attn_processor(NeighborhoodProcessor())`.

    diffusers is not imported: all that it needs of it comes with the call. A grid smaller than a window is
    refused by diffusers' own attention module before any processor is asked.

    Args:
        backend: As for `spatial_markov_attn`.
    """

    def __init__(self, backend: str = "auto") -> None:
        self.backend = backend

    def __call__(self, attn: Any, hidden_states: Tensor, block_mask: object = None) -> Tensor:
        """Attend: (B, T, H, W, C) to the same shape; diffusers passes no block mask to foreign processors."""
        query, key, value = attn.project_qkv(hidden_states)  # the query is scaled already
        out = spatial_markov_attn(query, key, value, attn.kernel_size, scale=1.0, backend=self.backend)
        projected: Tensor = attn.to_out[0](out.flatten(-2))
        return projected
