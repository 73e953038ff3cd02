"""The backends, one module each: what they are given (`AttentionCall`) and what they do with it (`Backend`).

Several share `dense.py` and `rectangles.py`; `codes.py` is `sample_codes` without Triton.
`mvar_kernels.dispatch` finds backends by name and picks one for "auto".
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mvar_kernels.pyramid import Neighborhood


class AttentionCall(NamedTuple):
    """The operands of one attention, checked and of one type; widths and heads are read off the tensors.

    Attributes:
        query: (B, Lq, H, D), any strides.
        key: (B, Lk, Hkv, D), any strides; Hkv divides H.
        value: (B, Lk, Hkv, Dv), any strides.
        logit_scale: (H,) for cosine attention, else None.
        neighborhood: which keys each query attends to.
        scale: factor of the logits.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    logit_scale: Tensor | None
    neighborhood: Neighborhood
    scale: float

    @property
    def cosine(self) -> bool:
        return self.logit_scale is not None

    @property
    def device(self) -> torch.device:
        return self.query.device

    @property
    def precise(self) -> torch.dtype:
        """The type of lse, of sums and of the softmax: query's, but at least float32."""
        return torch.promote_types(self.query.dtype, torch.float32)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """(B, Lq, H, value's width)."""
        return (*self.query.shape[:3], self.value.shape[3])

    @property
    def lse_shape(self) -> tuple[int, int, int]:
        """(B, H, Lq)."""
        batch, length, heads, _ = self.query.shape
        return batch, heads, length


class Backend(Protocol):
    """The functions of a backend module.

    It may also have `eager_forward(call)`: a path with PyTorch's own autograd, for calls without cosine that
    are so short that the overhead of our operators shows. It returns out, or None if it does not apply.
    """

    def can_run(self, call: AttentionCall) -> str | None:
        """Return the reason why the backend cannot take this call, or None if it can."""

    def forward(self, call: AttentionCall) -> tuple[Tensor, Tensor]:
        """Return out (contiguous, of query's type) and lse (natural log), of the shapes that `call` names."""

    def backward(
        self, call: AttentionCall, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return the gradients of query, key, value and logit_scale (None without logit_scale)."""
