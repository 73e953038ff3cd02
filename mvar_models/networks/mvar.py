"""MVAR (arXiv 2505.12742): every scale attends inside itself, the finer ones over k x k windows.

A scale sees the coarser ones through its input alone, the accumulated f_hat, so there is nothing to cache.
"""

from __future__ import annotations

from mvar_kernels.pyramid import Neighborhood
from mvar_models.config import MVARConfig
from mvar_models.networks.var import VAR
from mvar_models.networks.var_transformer import VARTransformer


class MVAR(VARTransformer):
    """Attends within scales, so it is Markov over scales and space.

    Any consecutive scales can be computed by themselves.
    """

    config: MVARConfig
    config_class = MVARConfig
    skips_guidance_at = 1.0

    @classmethod
    def from_var(cls, var: VAR, kernel_size: int = 7, dense_scales: int = 8) -> MVAR:
        """Return an MVAR with a copy of a VAR's parameters, ready to be fine-tuned.

        Args:
            var: The VAR, which is left as it is.
            kernel_size: Side of the windows.
            dense_scales: Number of leading scales that attend to the whole scale (8 at 256 px), at most all.
        """
        values = {name: value for name, value in var.config.to_dict().items() if name != "model_type"}
        dense_scales = min(dense_scales, len(var.config.sides))
        model = cls(MVARConfig(**values, kernel_size=kernel_size, dense_scales=dense_scales))
        parameter = next(var.parameters())
        model.to(device=parameter.device, dtype=parameter.dtype)
        model.load_state_dict(var.state_dict(), strict=True)
        return model.train(var.training)

    def neighborhood(self, scales: range) -> Neighborhood:
        return self.pyramid.select(scales).neighborhood()

    def step_neighborhood(self, scale: int) -> Neighborhood:
        return self.neighborhood(range(scale, scale + 1))
