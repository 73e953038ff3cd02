"""Exact likelihood: the cross-entropy of held-out images' codes, and classification by it.

Classification is A-VARC (arXiv 2510.12060): log p(codes | class), a sum over tokens.
Coarse scales tell most classes apart at a fraction of the tokens, so a class that falls `margin` nats behind
the best is dropped before the next scales are computed. Where scales are computed alone, as in MVAR, the sums
of the coarse scales stay; VAR computes its coarser scales again, so it has two stages. The default margin
kept every answer of the full sums, at .37 (digits) and .16 (emoji) of the tokens: docs/classify.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
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


MARGIN = 15.0


@dataclass(frozen=True)
class Posterior:
    """Posterior over the classes of one image, under a flat prior.

    Attributes:
        scale_log_likelihoods: (S, K) float64, log p of each scale's codes given each class; nan where the
            class was dropped before that scale.
        work: Tokens that went through the model over those of all classes and scales.
    """

    scale_log_likelihoods: Tensor
    work: float

    @property
    def log_likelihoods(self) -> Tensor:
        """(K,) float64; -inf for a class that was dropped."""
        return self.scale_log_likelihoods.sum(0).nan_to_num(nan=-math.inf)

    @property
    def probabilities(self) -> Tensor:
        """(K,) float64; 0 for a class that was dropped."""
        return self.log_likelihoods.softmax(0)

    @property
    def prediction(self) -> int:
        """The likeliest class."""
        return int(self.log_likelihoods.argmax())


def stages(model: ScaleTransformer) -> list[range]:
    """Return the ranges of scales to compute one after the other, coarse to fine.

    One scale each where the model computes scales alone. Else two ranges that both start at 0, of which the
    first has about an eighth of the tokens.
    """
    count = len(model.config.sides)
    try:
        model.check_scales(range(count - 1, count))
    except ValueError:
        ends = (*model.pyramid.offsets[1:], model.pyramid.length)
        first = next(scale for scale, end in enumerate(ends, start=1) if 8 * end >= model.pyramid.length)
        return [range(0, first), range(0, count)] if first < count else [range(0, count)]
    return [range(scale, scale + 1) for scale in range(count)]


@torch.no_grad()
def posterior(
    model: ScaleTransformer,
    vqvae: VQVAE,
    image: Tensor,
    *,
    margin: float | None = MARGIN,
    batch_size: int = 64,
) -> Posterior:
    """Compute the posterior over all classes of one image.

    The rows of a forward pass are classes of the one image, so the result does not depend on other images.

    Args:
        model: The transformer, without guidance and without dropped labels.
        vqvae: The VQVAE whose codes it predicts.
        image: (3, R, R) in [-1, 1].
        margin: Classes more than this many nats behind the best are dropped after each stage; None keeps all.
        batch_size: Classes per forward pass.

    Raises:
        ValueError: a margin that is not positive.
    """
    if margin is not None and not margin > 0:
        raise ValueError(f"margin must be positive or None, got {margin}")
    count, offsets = len(model.config.sides), model.pyramid.offsets
    indices = vqvae.encode(image[None].to(vqvae.device))
    inputs = vqvae.quantizer.scale_inputs(indices)
    sums = torch.full((count, model.config.num_classes), math.nan, dtype=torch.float64, device="cpu")
    alive = torch.arange(model.config.num_classes, device="cpu")
    computed, done = 0, 0
    plan = stages(model) if margin is not None else [range(0, count)]
    for scales in plan:
        tokens = _log_likelihoods(model, inputs, indices, alive, scales, batch_size)
        computed += tokens.numel()
        start = offsets[scales.start]
        for scale in scales:
            own = model.pyramid.scale_slice(scale)
            sums[scale, alive] = tokens[:, own.start - start : own.stop - start].sum(1)
        done = scales.stop
        so_far = sums[:done, alive].sum(0)
        if margin is not None and done < count:
            alive = alive[so_far >= so_far.max() - margin]
    return Posterior(sums, computed / (model.config.num_classes * model.config.length))


def _log_likelihoods(
    model: ScaleTransformer, inputs: Tensor, indices: Tensor, classes: Tensor, scales: range, batch_size: int
) -> Tensor:
    """Return log p(code | class) of the tokens of `scales`: (len(classes), n) float64 on the CPU."""
    rows = []
    for some in classes.split(batch_size):
        size = len(some)
        labels, own = some.to(indices.device), indices.expand(size, -1)
        losses = model.token_losses(labels, inputs.expand(size, -1, -1), own, scales)
        rows.append(-losses.double().cpu())
    return torch.cat(rows)


@torch.no_grad()
def evidence(model: ScaleTransformer, vqvae: VQVAE, image: Tensor, label: int) -> list[Tensor]:
    """Compute which tokens speak for a class: log p(code | class) - log p(code | no class), in nats.

    Args:
        model: The transformer.
        vqvae: The VQVAE whose codes it predicts.
        image: (3, R, R) in [-1, 1].
        label: The class.

    Returns:
        One (n_s, n_s) float64 tensor per scale.
    """
    indices = vqvae.encode(image[None].to(vqvae.device))
    inputs = vqvae.quantizer.scale_inputs(indices)
    labels = torch.tensor([label, model.config.num_classes], device="cpu")
    scales = range(len(model.config.sides))
    given, without = _log_likelihoods(model, inputs, indices, labels, scales, batch_size=2)
    return list(_grids(given - without, model))


def _grids(values: Tensor, model: ScaleTransformer) -> Iterator[Tensor]:
    for start, stop in pairwise((*model.pyramid.offsets, model.pyramid.length)):
        side = math.isqrt(stop - start)
        yield values[start:stop].view(side, side)


def evidence_map(grids: list[Tensor], side: int) -> Tensor:
    """Spread the evidence of every token over the pixels that it covers: (side, side), nats per pixel.

    The sum over the map is the sum over all tokens.
    """
    total = torch.zeros(side, side, dtype=torch.float64, device="cpu")
    for grid in grids:
        spread = F.interpolate(grid[None, None], size=(side, side), mode="nearest-exact")[0, 0]
        total += spread * (grid.numel() / side**2)
    return total
