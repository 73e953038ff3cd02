"""Load a program of scripts/, which is no package."""

import importlib.util
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "scripts"


def load_script(name):
    """Return scripts/NAME.py as a module."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
