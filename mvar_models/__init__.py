"""VQVAE, VAR and MVAR: networks, pretrained weights, fine-tuning and sampling."""

from mvar_kernels import __version__
from mvar_models.config import MVARConfig, VARConfig, VQVAEConfig
from mvar_models.mvar import MVAR
from mvar_models.pipeline import MVARPipeline, VARPipeline
from mvar_models.var import VAR
from mvar_models.vqvae import VQVAE
from mvar_models.zoo import list_models

__all__ = [
    "MVAR",
    "VAR",
    "VQVAE",
    "MVARConfig",
    "MVARPipeline",
    "VARConfig",
    "VARPipeline",
    "VQVAEConfig",
    "__version__",
    "list_models",
]
