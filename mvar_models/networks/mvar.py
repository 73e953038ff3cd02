"""MVAR (arXiv 2505.12742): every scale attends inside itself, the finer ones over k x k windows.

The coarser scales reach a scale through its input alone, the accumulated f_hat, so there is nothing to cache.
"""

from __future__ import annotations

from mvar_kernels.pyramid import Neighborhood
from mvar_models.config import MVARConfig
from mvar_models.networks.transformer import KVCache, ScaleTransformer
from mvar_models.networks.var import VAR


class MVAR(ScaleTransformer):
    """Markov over scales and space. Any consecutive scales can be computed alone."""

    config: MVARConfig
    config_class = MVARConfig
    skips_guidance_at = 1.0

    @classmethod
    def from_var(cls, var: VAR, kernel_size: int = 7, dense_scales: int = 8) -> MVAR:
        """An MVAR with a copy of a VAR's parameters, ready to be fine-tuned; the VAR stays as it is.

        dense_scales: that many leading scales attend to the whole scale (8 at 256 px); at most all of them do.
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

    def new_cache(self) -> KVCache | None:
        return None

    def step_neighborhood(self, scale: int) -> Neighborhood:
        """One sampling step: the tokens of `scale` among themselves."""
        return self.neighborhood(range(scale, scale + 1))
