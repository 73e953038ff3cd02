"""Shared by the tests that execute our kernels' machine code: where they can run."""

import importlib.metadata
import importlib.util
import os

import pytest

CAPABILITIES = (80, 90)
_GATED_WITH = "3.7.1"
_FOUND = importlib.metadata.version("triton") if importlib.util.find_spec("triton") else "no triton"
MACHINE_CODE = [
    pytest.mark.skipif(
        _FOUND != _GATED_WITH, reason=f"the emulator knows the PTX of triton {_GATED_WITH}, here is {_FOUND}"
    ),
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"), reason="the interpreter compiles nothing"
    ),
]
