"""Shared by all tests: one thread per worker, and a fresh seed that a failure prints."""

import os
import random

import pytest
import torch

from slow_tests import is_slow

# No test asks the Hub; those that need one start a server of their own.
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"


def pytest_configure(config):
    if os.environ.get("PYTEST_XDIST_WORKER"):
        torch.set_num_threads(1)


# A file stays on one worker. The longest begin, so that no worker ends with one while others wait.
_FIRST = ("test_distributed.py", "test_combinations.py", "test_aot.py", "test_formulas.py", "test_mutants.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in _FIRST)
    for item in items:
        if is_slow(item.path, item.originalname):
            item.add_marker(pytest.mark.slow)


def pytest_report_header(config):
    seed = os.environ.get("MVAR_TEST_SEED", "fresh")
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads; MVAR_TEST_SEED={seed}"


@pytest.fixture
def seed():
    """A fresh seed for each test, printed when it fails; MVAR_TEST_SEED=N repeats one."""
    value = int(os.environ.get("MVAR_TEST_SEED", random.SystemRandom().randrange(2**31)))
    print(f"MVAR_TEST_SEED={value}")
    torch.manual_seed(value)
    return value
