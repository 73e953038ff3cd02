"""Where there is no GPU the kernels run in Triton's interpreter, which these tests switch on for their whole
process.

Triton decides when kernels are defined whether it interprets them, so the switch must be set before the first
import, and no other test may share the process: `pytest tests/triton` alone, and `pytest tests
--ignore=tests/triton` for the rest. With a GPU, or on the emulated one (EMULATED names its capability, and a
plugin installs it), nothing is switched.
"""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def interpreted():
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


def needs_the_interpreter():
    return not (torch.cuda.is_available() or os.environ.get("EMULATED") or interpreted())


def is_own_process(config):
    """Whether this run was asked for tests of this folder and for no others."""
    paths = [config.invocation_params.dir / argument.partition("::")[0] for argument in config.args]
    return all(HERE == path.resolve() or HERE in path.resolve().parents for path in paths)


def reason_to_skip(config):
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (it exists for Linux only)"
    if needs_the_interpreter() and not is_own_process(config):
        return "Triton's interpreter needs a process of its own: run `pytest tests/triton` as well"
    return None


def pytest_configure(config):
    if reason_to_skip(config) or not needs_the_interpreter():
        return
    if "triton" in sys.modules:
        raise pytest.UsageError(
            "triton was imported before tests/triton could switch its interpreter on: a plugin did it; "
            "set TRITON_INTERPRET=1 in the environment, or run without that plugin"
        )
    os.environ["TRITON_INTERPRET"] = "1"


class SkippedModule(pytest.Module):
    """A test file that is reported as skipped and never imported."""

    def collect(self):
        pytest.skip(reason_to_skip(self.config))


def pytest_pycollect_makemodule(module_path, parent):
    if reason_to_skip(parent.config):
        return SkippedModule.from_parent(parent, path=module_path)
    return None
