"""The backends: one module each, with the functions that `mvar_kernels.dispatch.Backend` describes, and
nothing else.

`common/` holds what several of them share. `mvar_kernels.dispatch` finds them by name and picks one for
"auto".
"""

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    # Version 0.1.0 had `load` here. Resolved on access, so that importing a backend never imports the layer
    # above it.
    if name == "load":
        return importlib.import_module("mvar_kernels.dispatch").load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
