"""The suites of `python -m benchmarks --suite NAME`.

A new suite is one file in this folder, with `run(settings) -> list[str]` that measures, writes its results
and returns the lines to print, and one row here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from benchmarks.suites.settings import Settings

SUITES = {
    "attention": "benchmarks.suites.attention",
    "cpu-targets": "benchmarks.suites.cpu_targets",
    "model": "benchmarks.suites.model",
    "sampling": "benchmarks.suites.sampling",
    "engine": "benchmarks.suites.engine",
    "memory": "benchmarks.suites.memory",
    "emulated": "benchmarks.suites.emulated",
    "editing": "benchmarks.suites.editing",
    "evaluation": "benchmarks.suites.evaluation",
    "family": "benchmarks.suites.family",
}


def load(name: str) -> Callable[[Settings], list[str]]:
    """Import a suite and return its `run`."""
    run: Callable[[Settings], list[str]] = importlib.import_module(SUITES[name]).run
    return run
