"""VQVAE, VAR, MVAR and Markov-VAR: networks, pretrained weights, fine-tuning and sampling.

The names below are imported on first use, so that `mvar --help` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvar_kernels import __version__ as __version__
    from mvar_models.checkpoints.zoo import list_models as list_models
    from mvar_models.config import MarkovVARConfig as MarkovVARConfig
    from mvar_models.config import MVARConfig as MVARConfig
    from mvar_models.config import VARConfig as VARConfig
    from mvar_models.config import VQVAEConfig as VQVAEConfig
    from mvar_models.networks.markov_var import MarkovVAR as MarkovVAR
    from mvar_models.networks.mvar import MVAR as MVAR
    from mvar_models.networks.var import VAR as VAR
    from mvar_models.networks.vqvae import VQVAE as VQVAE
    from mvar_models.pipeline import MarkovVARPipeline as MarkovVARPipeline
    from mvar_models.pipeline import MVARPipeline as MVARPipeline
    from mvar_models.pipeline import VARPipeline as VARPipeline

_MODULES = {
    "mvar_kernels": ("__version__",),
    "mvar_models.checkpoints.zoo": ("list_models",),
    "mvar_models.config": ("VQVAEConfig", "VARConfig", "MVARConfig", "MarkovVARConfig"),
    "mvar_models.networks.vqvae": ("VQVAE",),
    "mvar_models.networks.var": ("VAR",),
    "mvar_models.networks.mvar": ("MVAR",),
    "mvar_models.networks.markov_var": ("MarkovVAR",),
    "mvar_models.pipeline": ("VARPipeline", "MVARPipeline", "MarkovVARPipeline"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_MODULE_OF)

if not TYPE_CHECKING:  # a type checker would take any name for an attribute

    def __getattr__(name: str) -> Any:
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(_MODULE_OF[name]), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
