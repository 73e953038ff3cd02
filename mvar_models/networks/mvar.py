"""MVAR (arXiv 2505.12742): every scale attends inside itself, the finer ones over k x k windows.

A scale sees the coarser ones through its input alone, the accumulated f_hat, so there is nothing to cache.
With `previous_scales` its tokens attend to those scales too, and sampling keeps their keys and values.
"""

from __future__ import annotations

from torch import Tensor

from mvar_kernels.pyramid import Neighborhood
from mvar_models.config import MVARConfig
from mvar_models.networks.state import RecentCache, ScaleState
from mvar_models.networks.var import VAR, VARTransformer


class MVAR(VARTransformer):
    """Attends within scales, so it is Markov over scales and space.

    Any consecutive scales can be computed by themselves, unless there are `previous_scales`.
    """

    config: MVARConfig
    config_class = MVARConfig
    skips_guidance_at = 1.0
    free_settings = frozenset({"previous_scales"})

    @classmethod
    def from_var(
        cls, var: VAR, kernel_size: int = 7, dense_scales: int = 8, previous_scales: int = 0
    ) -> MVAR:
        """Return an MVAR with a copy of a VAR's parameters, ready to be fine-tuned.

        Args:
            var: The VAR, which is left as it is.
            kernel_size: Side of the windows.
            dense_scales: Number of leading scales that attend to whole scales (8 at 256 px), at most all.
            previous_scales: Scales before its own that a token attends to as well.
        """
        return cls.from_network(
            var,
            kernel_size=kernel_size,
            dense_scales=min(dense_scales, len(var.config.sides)),
            previous_scales=previous_scales,
        )

    def with_previous_scales(self, previous_scales: int) -> MVAR:
        """Return a copy that attends to other scales, which has the same parameters, ready to be fine-tuned.

        Args:
            previous_scales: Scales before its own that a token attends to as well.
        """
        return self.from_network(self, previous_scales=previous_scales)

    def check_scales(self, scales: range | None) -> range:
        scales = super().check_scales(scales)
        if self.config.previous_scales and scales.start != 0:
            raise ValueError(
                "an MVAR with previous_scales needs all coarser scales, so scales must start at 0, "
                f"got {scales!r}"
            )
        return scales

    def step_neighborhood(self, scale: int) -> Neighborhood:
        return self.pyramid.step_neighborhood(scale)

    def new_state(self, labels: Tensor) -> ScaleState:
        if not self.config.previous_scales:
            return super().new_state(labels)
        return ScaleState(self.class_embedding(labels), RecentCache(self.pyramid))
