"""VAR (arXiv 2404.02905): every scale attends to itself and to all coarser scales."""

from __future__ import annotations

from torch import Tensor

from mvar_kernels.pyramid import Neighborhood
from mvar_models.config import VARConfig
from mvar_models.networks.state import KVCache, ScaleState
from mvar_models.networks.var_transformer import VARTransformer


class VAR(VARTransformer):
    """Attends block-causally over scales; sampling keeps the keys and values of the scales already drawn."""

    config_class = VARConfig
    skips_guidance_at = 0.0

    def check_scales(self, scales: range | None) -> range:
        scales = super().check_scales(scales)
        if scales.start != 0:
            raise ValueError(f"VAR needs all coarser scales, so scales must start at 0, got {scales!r}")
        return scales

    def neighborhood(self, scales: range) -> Neighborhood:
        return self.pyramid.select(scales).causal_neighborhood()

    def new_state(self, labels: Tensor) -> ScaleState:
        last = self.config.sides[-1] ** 2
        return ScaleState(self.class_embedding(labels), KVCache(length=self.config.length, last=last))

    def step_neighborhood(self, scale: int) -> Neighborhood:
        # Every token of the scale attends to the whole cache, which is laid out as one row of tokens.
        side, length = self.config.sides[scale], self.pyramid.scale_slice(scale).stop
        return Neighborhood.of_grids((side, side), (1, length), (1, length))
