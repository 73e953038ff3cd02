"""Likelihood of held-out images: the cross-entropy of their codes under teacher forcing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mvar_kernels import Pyramid
from mvar_models.data.class_names import listed, renumbered
from mvar_models.data.source import ImageSource
from mvar_models.distributed import Processes
from mvar_models.networks.quantizer import MultiScaleQuantizer
from mvar_models.networks.transformer import ScaleTransformer
from mvar_models.networks.vqvae import VQVAE
from mvar_models.sampling.progress import counting
from mvar_models.tokens.encode import tokenize
from mvar_models.tokens.token_set import TokenSet


@torch.no_grad()
def held_out_losses(
    losses: Callable[[Tensor, Tensor, Tensor], Tensor],
    quantizer: MultiScaleQuantizer,
    examples: TokenSet,
    *,
    batch_size: int = 32,
    dtype: torch.dtype | None = None,
    processes: Processes | None = None,
) -> Tensor:
    """Average the cross-entropy of each token over examples.

    Args:
        losses: Takes labels (n,), scale inputs (n, L - 1, z) and indices (n, L), and returns cross-entropies
            (n, L) in nats, as `model.token_losses` does.
        quantizer: The quantizer of the VQVAE that made the codes; the batches go to its device.
        examples: The held-out examples.
        batch_size: Examples per forward pass and process.
        dtype: Type for autocast; None is without.
        processes: Those that share each batch; default: this one alone.

    Returns:
        (L,) float64.
    """
    device = quantizer.code_usage.device
    sums = torch.zeros(sum(side * side for side in quantizer.sides), dtype=torch.float64, device="cpu")
    processes = processes or Processes()
    stride = batch_size * processes.world_size
    with counting("validation", len(examples)) as meter:
        for start in range(0, len(examples), stride):
            batch = np.arange(start, min(start + stride, len(examples)))
            members = batch[processes.rank :: processes.world_size]
            # FSDP needs the same number of forwards in all processes; one without examples discards its own.
            labels, indices = examples.batch(members if len(members) else batch[:1])
            labels, indices = labels.to(device), indices.to(device)
            inputs = quantizer.scale_inputs(indices)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                found = losses(labels, inputs, indices)
            if len(members):
                sums += found.double().sum(0).cpu()
            meter.advance(len(batch))
    return processes.total(sums) / len(examples)


def per_scale(values: Tensor, pyramid: Pyramid) -> list[float]:
    """Average values per token (L,) over the tokens of each scale."""
    return [values[pyramid.scale_slice(scale)].mean().item() for scale in range(pyramid.num_scales)]


def held_out_likelihood(
    model: ScaleTransformer,
    vqvae: VQVAE,
    source: ImageSource,
    *,
    batch_size: int = 32,
    processes: Processes | None = None,
) -> dict[str, Any]:
    """Compute how likely a model finds the images that its training holds out.

    Args:
        model: The transformer.
        vqvae: The VQVAE whose codes it predicts.
        source: The dataset.
        batch_size: Examples per forward pass and process.
        processes: As for `held_out_losses`.

    Returns:
        `nats_per_code` and `bits_per_code` (means over all codes), `nats_per_image` (their sum),
        `nats_per_scale` (S means), and `count`, the number of images.
    """
    examples = tokenize(vqvae, source, source.held_out)
    labels = labels_of_model(model, source, examples.labels)
    examples = replace(examples, labels=labels)
    losses = held_out_losses(
        model.token_losses, vqvae.quantizer, examples, batch_size=batch_size, processes=processes
    )
    nats = losses.mean().item()
    return {
        "nats_per_code": nats,
        "bits_per_code": nats / math.log(2),
        "nats_per_image": losses.sum().item(),
        "nats_per_scale": per_scale(losses, model.pyramid),
        "count": len(examples),
    }


def labels_of_model(model: ScaleTransformer, source: ImageSource, labels: np.ndarray) -> np.ndarray:
    """Renumber labels (n,) of a dataset as the model's labels of the same classes.

    Raises:
        ValueError: the model lacks some of their classes.
    """
    names = model.config.class_names
    found = renumbered(labels, source.class_names, names)
    unknown = (found < 0) | (found >= model.config.num_classes)
    if unknown.any():
        raise ValueError(
            f"the data has classes that the model does not: "
            f"{listed(np.unique(labels[unknown]), source.class_names)}; its classes are "
            f"{listed(np.arange(model.config.num_classes), names)}"
        )
    return found
