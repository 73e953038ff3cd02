"""ScaleKV (arXiv 2505.19602): a KV cache that keeps, per layer and head, the keys the newest map looks at.

After a layer has attended at a scale, its keys are cut to a budget. The window, queries of the newest map at
the centres of 4 x 4 patches, scores all keys, and the best stay, with the window's own. A layer may be a
drafter at a scale, which keeps almost everything, at the cost of the other layers, the refiners.

For VAR this is our reading, as the paper's models are of another kind. Keys carry their position, so any
subset may be attended to, and the two halves of guidance are cut separately.

Shapes: B rows, n tokens of the newest map, N keys so far, H heads, D features of a head.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mvar_kernels.pyramid import Neighborhood
from mvar_models.config import Drafters, TransformerConfig
from mvar_models.networks.state import KVCache, Pair, ScaleState, concatenated
from mvar_models.networks.transformer import ScaleTransformer

# "attention" is the paper's, "released" the released code's; the others are controls of equal size.
CACHE_RULES = ("attention", "released", "recent", "random")
_PER_AXIS = 4
WINDOW = _PER_AXIS**2
_POOL = 5
# Fewest keys of a refiner over the mean budget, as released.
_FLOOR = 200 / 650


def budgets(
    sides: Sequence[int], depth: int, mean: int, drafters: Drafters = (), floor: int | None = None
) -> list[list[int]]:
    """Return how many keys each layer has at most when a scale begins: S rows of `depth`.

    At every scale they add up to `mean` per layer. Drafters get the largest number that they can fill and
    that leaves the refiners a whole one; this gives all budgets that were released.

    Args:
        sides: Side of each scale.
        depth: Number of layers.
        mean: Keys per layer.
        drafters: Pairs of a layer and a scale.
        floor: Fewest keys of a refiner; default: of `mean` the share that was released, or the window.
    """
    floor = max(WINDOW, round(_FLOOR * mean)) if floor is None else floor
    table, held, before = [], [0] * depth, 0
    for scale, side in enumerate(sides):
        drafting = [layer for layer in range(depth) if (layer, scale) in drafters]
        refining = depth - len(drafting)
        row = [before if before <= mean else mean] * depth
        if before > mean and drafting and refining:
            for size in range(max(held[layer] for layer in drafting), mean, -1):
                left, over = divmod(mean * depth - len(drafting) * size, refining)
                if not over and left >= floor:
                    row = [size if layer in drafting else left for layer in range(depth)]
                    break
        table.append(row)
        held = [min(pair) + side * side for pair in zip(held, row)]
        before += side * side
    return table


def window(side: int, num_keys: int, rule: str = "attention", device: torch.device | None = None) -> Tensor:
    """Return which keys are the window (w,), int64: patch centres of the newest map, which comes last."""
    if side < _PER_AXIS:
        return torch.arange(max(num_keys - WINDOW, 0), num_keys, device=device or "cpu")
    index, patch = torch.arange(_PER_AXIS, device=device or "cpu"), side // _PER_AXIS
    # The released centres lie off the middle where 4 does not divide the side.
    centre = index * patch + (patch - 1) // 2 if rule == "released" else (2 * index + 1) * side // 8
    return num_keys - side * side + (centre[:, None] * side + centre).flatten()


def key_scores(query: Tensor, key: Tensor, own: Tensor, rule: str, factor: float | Tensor) -> Tensor:
    """Score keys by what the window's queries see in them: (B, H, N) float32.

    Args:
        query: (B, w, H, D), of the window.
        key: (B, N, H, D).
        own: (w,), which keys are the window.
        rule: "attention" averages softmax weights over neighbouring keys; "released" takes the largest logit,
            those of the window left out.
        factor: Of the logits; one, or one per head (H, 1, 1).
    """
    logits = torch.einsum("bwhd,bnhd->bhwn", query.float(), key.float()) * factor
    if rule == "released":
        logits = logits.index_fill(-1, own, -torch.inf)
        return F.max_pool1d(logits.sum(2), _POOL, stride=1, padding=_POOL // 2)
    return F.avg_pool1d(logits.softmax(-1).sum(2), _POOL, stride=1, padding=_POOL // 2)


def kept_keys(scores: Tensor, own: Tensor, budget: int) -> Tensor:
    """Return the window (w,) and the best others of scores (B, H, N), in order: (B, H, budget) int64."""
    return scores.index_fill(-1, own, torch.inf).topk(budget).indices.sort().values


def check_cache(model: ScaleTransformer, state: ScaleState) -> None:
    """Raise ValueError unless the model's state has a cache that all tokens of the next scale see."""
    cache = getattr(state, "cache", None)  # graphs of ONNX have none
    if type(cache) is not KVCache:
        kept = "keeps windows of recent scales" if cache else "has no KV cache"
        raise ValueError(
            f"cache_budget is for models that attend to all coarser scales, and {type(model).__name__} {kept}"
        )


class ScaleKVCache(KVCache):
    """Keeps as many of each layer's keys and values as the layer's budget for the next scale.

    Those of the last scale are never kept.

    Args:
        config: The model's.
        share: Keys per layer, on average, as a share of the tokens before the last scale.
        rule: Which keys stay, one of `CACHE_RULES`.
        drafters: Pairs of a layer and a scale; default: all layers keep the same number.

    Raises:
        ValueError: the budget is smaller than the window, or there is no such layer or scale.
    """

    def __init__(
        self, config: TransformerConfig, share: float, rule: str = "attention", drafters: Drafters = ()
    ) -> None:
        super().__init__()
        sides, depth = config.sides, config.depth
        tokens = config.length - sides[-1] ** 2
        mean = round(share * tokens)
        if mean < WINDOW:
            raise ValueError(
                f"cache_budget must keep at least {WINDOW} keys per layer, which score the others, "
                f"got {share:g}: {mean} of {tokens}"
            )
        for pair in drafters:
            if pair[0] >= depth or pair[1] >= len(sides):
                raise ValueError(
                    f"cache_drafters must be pairs of a layer below {depth} and a scale below {len(sides)}, "
                    f"got {tuple(pair)}"
                )
        self.rule, self.sides, self.factor = rule, sides, config.attention_scale
        self.budgets = budgets(sides, depth, mean, drafters)
        # The next scale of each layer.
        self._scale: dict[int, int] = {}

    def extend(
        self, block: int, key: Tensor, value: Tensor, query: Tensor | None = None,
        logit_scale: Tensor | None = None,
    ) -> Pair:  # fmt: skip
        assert query is not None
        scale = self._scale.get(block, 0)
        whole = concatenated(self.entries.pop(block, None), key, value)
        self._scale[block] = scale + 1
        if scale + 1 < len(self.sides):
            budget = self.budgets[scale + 1][block]
            self.entries[block] = whole
            if whole[0].shape[1] > budget:
                kept = self._kept(block, whole[0], query, logit_scale, budget)
                index = kept.transpose(1, 2)[..., None].expand(len(key), -1, *key.shape[2:])
                self.entries[block] = whole[0].gather(1, index), whole[1].gather(1, index)
        return whole

    def neighborhood(self, whole: Neighborhood, num_keys: int) -> Neighborhood:
        if num_keys == whole.num_keys:
            return whole
        return Neighborhood.of_grids((1, whole.num_queries), (1, num_keys), (1, num_keys))

    def fork(self) -> ScaleKVCache:
        twin = copy.copy(self)  # it never writes into a tensor
        twin.entries, twin._scale = dict(self.entries), dict(self._scale)
        return twin

    @torch.no_grad()
    def _kept(
        self, block: int, key: Tensor, query: Tensor, logit_scale: Tensor | None, budget: int
    ) -> Tensor:
        """Return which keys stay, in order: (B or 1, H, budget)."""
        length, heads, device = key.shape[1], key.shape[2], key.device
        scale = self._scale[block] - 1
        if self.rule == "recent":
            return torch.arange(length - budget, length, device=device).expand(1, heads, -1)
        if self.rule == "random":  # the same for all rows, so that none depends on the others
            source = torch.Generator("cpu").manual_seed(block * len(self.sides) + scale)
            chances = torch.rand(1, heads, length, generator=source, dtype=torch.float32, device="cpu")
            return chances.topk(budget).indices.sort().values.to(device)
        side = self.sides[scale]
        own = window(side, length, self.rule, device)
        asking = query if side < _PER_AXIS else query[:, own - (length - side * side)]
        factor: float | Tensor = self.factor
        if logit_scale is not None:
            key, factor = F.normalize(key.float(), dim=-1), logit_scale[:, None, None]
        if self.rule == "released":  # which asks with queries that are not normalised
            factor = query.shape[-1] ** -0.5
        elif logit_scale is not None:
            asking = F.normalize(asking.float(), dim=-1)
        return kept_keys(key_scores(asking, key, own, self.rule, factor), own, budget)
