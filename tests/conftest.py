"""Shared by all tests: one thread per worker, and a fresh seed that a failure prints."""

import os
import random

import pytest
import torch


def pytest_configure(config):
    if os.environ.get("PYTEST_XDIST_WORKER"):
        torch.set_num_threads(1)


# The interpreter's cases take minutes and stay on one worker: begun last, the other would wait for them.
_FIRST = ("test_triton.py", "test_distributed.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: _FIRST.index(item.path.name) if item.path.name in _FIRST else len(_FIRST))


def pytest_report_header(config):
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads; MVAR_TEST_SEED={os.environ.get('MVAR_TEST_SEED', 'fresh')}"


@pytest.fixture
def seed():
    """A fresh seed for each test, printed when it fails; MVAR_TEST_SEED=N repeats one."""
    value = int(os.environ.get("MVAR_TEST_SEED", random.SystemRandom().randrange(2**31)))
    print(f"MVAR_TEST_SEED={value}")
    torch.manual_seed(value)
    return value
