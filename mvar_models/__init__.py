"""VQVAE, VAR, MVAR and Markov-VAR: networks, pretrained weights, fine-tuning and sampling.

The names below are imported on first use, so that `mvar --help` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvar_kernels import __version__
    from mvar_models.checkpoints.zoo import list_models
    from mvar_models.config import MarkovVARConfig, MVARConfig, VARConfig, VQVAEConfig
    from mvar_models.networks.markov_var import MarkovVAR
    from mvar_models.networks.mvar import MVAR
    from mvar_models.networks.var import VAR
    from mvar_models.networks.vqvae import VQVAE
    from mvar_models.pipeline import MarkovVARPipeline, MVARPipeline, VARPipeline

__all__ = [
    "MVAR",
    "VAR",
    "VQVAE",
    "MVARConfig",
    "MVARPipeline",
    "MarkovVAR",
    "MarkovVARConfig",
    "MarkovVARPipeline",
    "VARConfig",
    "VARPipeline",
    "VQVAEConfig",
    "__version__",
    "list_models",
]

_MODULES = {
    "MVAR": "mvar_models.networks.mvar",
    "VAR": "mvar_models.networks.var",
    "VQVAE": "mvar_models.networks.vqvae",
    "MVARConfig": "mvar_models.config",
    "MVARPipeline": "mvar_models.pipeline",
    "MarkovVAR": "mvar_models.networks.markov_var",
    "MarkovVARConfig": "mvar_models.config",
    "MarkovVARPipeline": "mvar_models.pipeline",
    "VARConfig": "mvar_models.config",
    "VARPipeline": "mvar_models.pipeline",
    "VQVAEConfig": "mvar_models.config",
    "__version__": "mvar_kernels",
    "list_models": "mvar_models.checkpoints.zoo",
}

if not TYPE_CHECKING:  # a type checker would take any name for an attribute

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(_MODULES[name]), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
