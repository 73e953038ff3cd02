"""Shared by all tests: one thread per worker, and a fresh seed that a failure prints."""

import os
import random
from pathlib import Path

import pytest
import torch


def pytest_configure(config):
    if os.environ.get("PYTEST_XDIST_WORKER"):
        torch.set_num_threads(1)


# The longest file, which stays on one worker: started last, the other worker would wait for it.
_FIRST = "test_distributed.py"


# What `make test-fast` leaves out: folders, files, or single tests as "file::test", relative to this folder.
# They compile for GPUs, start torchrun, kill processes, train for long or run whole programs.
_SLOW = (
    "benchmarks/test_benchmarks.py",
    "benchmarks/test_benchmarks_models.py",
    "checkpoints/test_hub.py",
    "demo/test_demo.py",
    "docs/test_code_blocks.py",
    "docs/test_commands.py",
    "docs/test_examples.py",
    "docs/test_site.py",
    "emulator",
    "kernels/test_aot.py",
    "kernels/test_natten.py",
    "sampling/test_same_digits.py::test_codes_drawn_one_by_one_are_the_same",
    "tokens/test_token_cache.py::test_a_killed_run_goes_on_with_the_missing_shards",
    "training/test_dead_codes.py",
    "training/test_distributed.py",
    "training/test_finetuning.py",
    "training/test_loop.py::test_compiled_blocks_train_alike",
    "training/test_resume.py",
    "training/test_sharded_model.py",
    "training/test_vqvae_task.py",
    "triton",
)


def is_slow(item):
    """Whether a collected test, or the file or folder that it lies in, is listed in _SLOW."""
    name = f"{item.path.relative_to(Path(__file__).parent).as_posix()}::{item.originalname}"
    return any(name == slow or name.startswith((f"{slow}::", f"{slow}/")) for slow in _SLOW)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name != _FIRST)
    for item in items:
        if is_slow(item):
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
