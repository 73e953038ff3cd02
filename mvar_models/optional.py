"""Import optional dependencies where they are used, with a clear message where absent."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, extra: str) -> ModuleType:
    """Import `module`; ImportError names the extra that brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module} is needed here but cannot be imported ({error}); "
            f"in this project's folder: pip install '.[{extra}]'"
        ) from None
