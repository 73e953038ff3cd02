"""Likelihood of held-out images: the cross-entropy of their codes under teacher forcing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mvar_kernels import Pyramid
from mvar_models.networks.quantizer import MultiScaleQuantizer


class Examples(Protocol):
    """Labelled codes, for instance a `TokenSet`."""

    def __len__(self) -> int: ...

    def batch(self, members: np.ndarray, /) -> tuple[Tensor, Tensor]:
        """Return labels (n,) and indices (n, L), both int64."""


@torch.no_grad()
def held_out_losses(
    losses: Callable[[Tensor, Tensor, Tensor], Tensor],
    quantizer: MultiScaleQuantizer,
    examples: Examples,
    *,
    batch_size: int = 32,
    dtype: torch.dtype | None = None,
    rank: int = 0,
    world_size: int = 1,
    total: Callable[[Tensor], Tensor] = lambda values: values,
) -> Tensor:
    """Average the cross-entropy of each token over examples.

    Args:
        losses: Takes labels (n,), scale inputs (n, L - 1, z) and indices (n, L), and returns cross-entropies
            (n, L) in nats, as `model.token_losses` does.
        quantizer: The quantizer of the VQVAE that made the codes; the batches go to its device.
        examples: The held-out examples.
        batch_size: Examples per forward pass and process.
        dtype: Type for autocast; None is without.
        rank: Index of this process, which takes every `world_size`-th example of a batch.
        world_size: Number of processes.
        total: Sums a tensor over all processes.

    Returns:
        (L,) float64.
    """
    device = quantizer.codebook.weight.device
    sums = torch.zeros(sum(side * side for side in quantizer.sides), dtype=torch.float64)
    stride = batch_size * world_size
    for start in range(0, len(examples), stride):
        batch = np.arange(start, min(start + stride, len(examples)))
        members = batch[rank::world_size]
        # FSDP needs the same number of forwards in all processes; one without examples computes and discards.
        labels, indices = examples.batch(members if len(members) else batch[:1])
        labels, indices = labels.to(device), indices.to(device)
        inputs = quantizer.scale_inputs(indices)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            found = losses(labels, inputs, indices)
        if len(members):
            sums += found.double().sum(0).cpu()
    return total(sums) / len(examples)


def per_scale(values: Tensor, pyramid: Pyramid) -> list[float]:
    """Average values per token (L,) over the tokens of each scale."""
    return [values[pyramid.scale_slice(scale)].mean().item() for scale in range(pyramid.num_scales)]
