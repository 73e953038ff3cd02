"""The attention selectivity index of ScaleKV (arXiv 2505.19602): which layers of a VAR look at few keys.

The index is high where queries attend to their own map and to few keys before it. The pairs of a layer and a
scale where it is low are drafters, which need more cache. The paper leaves the averages open: here they are
over images, heads and queries, without the unconditional half.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mvar_models.config import TransformerConfig
from mvar_models.networks.quantizer import MultiScaleQuantizer
from mvar_models.networks.scalekv import check_cache
from mvar_models.networks.state import KVCache, Pair
from mvar_models.networks.transformer import ScaleTransformer


def selectivity(query: Tensor, key: Tensor, top: int, factor: float | Tensor) -> Tensor:
    """Return how much queries attend to their own map, and to the `top` keys before it they see most: (2,).

    Their product is the attention selectivity index; both are means over rows, heads and queries.

    Args:
        query: (B, n, H, D).
        key: (B, N, H, D), those of the queries' map last.
        top: K' of the paper, which does not publish it.
        factor: As for `key_scores`.
    """
    weights = (torch.einsum("bqhd,bnhd->bhqn", query.float(), key.float()) * factor).softmax(-1)
    before, own = weights.split([key.shape[1] - query.shape[1], query.shape[1]], dim=-1)
    best = before.topk(min(top, before.shape[-1])).values
    return torch.stack([own.sum(-1).mean(), best.sum(-1).mean()])


class SelectivityCache(KVCache):
    """Measures the attention of each layer at each scale; `found` has `selectivity` by both."""

    def __init__(self, config: TransformerConfig, top: int) -> None:
        super().__init__()
        self.config, self.top = config, top
        self.found: dict[tuple[int, int], Tensor] = {}

    def extend(
        self, block: int, key: Tensor, value: Tensor, query: Tensor | None = None,
        logit_scale: Tensor | None = None,
    ) -> Pair:  # fmt: skip
        assert query is not None
        whole = super().extend(block, key, value)
        keys, factor = whole[0], self.config.attention_scale
        if logit_scale is not None:
            query, keys = (F.normalize(each.float(), dim=-1) for each in (query, keys))
            factor = logit_scale[:, None, None]  # type: ignore[assignment]
        scale = sum(layer == block for layer, _ in self.found)
        self.found[block, scale] = selectivity(query, keys, self.top, factor)
        return whole


@torch.no_grad()
def selectivity_index(
    model: ScaleTransformer, quantizer: MultiScaleQuantizer, labels: Tensor, indices: Tensor, top: int = 8
) -> Tensor:
    """Compute the attention selectivity index of each layer at each scale but the coarsest: (depth, S - 1).

    Args:
        model: One whose tokens attend to all coarser scales.
        quantizer: The quantizer of its VQVAE.
        labels: (B,) int64, without the unconditional half.
        indices: (B, L) int64, codes of images of these classes.
        top: As for `selectivity`.

    Raises:
        ValueError: the model has no cache of all coarser scales.
    """
    config, inputs, found = model.config, quantizer.scale_inputs(indices), []
    pairs = [(layer, scale) for layer in range(config.depth) for scale in range(1, len(config.sides))]
    for row in range(len(labels)):  # one at a time, as all weights of attention exist at once
        state = model.new_state(labels[row : row + 1])
        check_cache(model, state)
        state.cache = cache = SelectivityCache(config, top)
        for scale in range(len(config.sides)):
            tokens = model.tokens_of(range(scale, scale + 1))
            own = slice(max(tokens.start - 1, 0), tokens.stop - 1)
            model.step(state, inputs[row : row + 1, own], scale)
        found.append(torch.stack([cache.found[pair] for pair in pairs]))
    return torch.stack(found).mean(0).prod(-1).view(config.depth, -1)


def drafters_of(index: Tensor, count: int) -> list[tuple[int, int]]:
    """Return the `count` pairs of layer and scale with the lowest z of their index (depth, S - 1)."""
    z = (index - index.mean(0)) / (index.std(0, correction=0) + 1e-6)
    lowest = z.flatten().topk(count, largest=False).indices.tolist()
    return [(pair // index.shape[1], pair % index.shape[1] + 1) for pair in lowest]
