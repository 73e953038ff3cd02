"""VQVAE, VAR and MVAR: networks, pretrained weights, fine-tuning and sampling."""

from mvar_kernels import __version__
from mvar_models.checkpoints.zoo import list_models
from mvar_models.config import MVARConfig, VARConfig, VQVAEConfig
from mvar_models.networks.mvar import MVAR
from mvar_models.networks.var import VAR
from mvar_models.networks.vqvae import VQVAE
from mvar_models.pipeline import MVARPipeline, VARPipeline

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
