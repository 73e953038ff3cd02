"""Counts of what the kernels execute, as `python -m benchmarks --suite emulated` left them in results/.

They hold for the kernels of the commit that the results name; the suite counts again.
"""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.core.cases import Case, grid, pyramid
from benchmarks.core.report import Record

RESULTS = Path(__file__).parents[1] / "results"


def counted_cases() -> tuple[Case, ...]:
    """List what is counted, forward with backward: one batch element and head, as all others are alike."""
    shape: dict[str, Any] = {"heads": 1, "dtype": torch.bfloat16}
    return (
        pyramid("256px", **shape).both(),
        pyramid("256px", cosine=True, **shape).both(),
        grid(64, **shape).both(),
    )


def title(case: Case) -> str:
    """Return what results call a case."""
    return f"{case.name}{' cosine' if case.cosine else ''}"


def executed(case: Case, architecture: str) -> dict[str, Record]:
    """Return the record of each kernel for one batch element and head; nothing where a case was not counted.

    Args:
        case: of any batch and number of heads.
        architecture: such as "sm_90".
    """
    if replace(case.both(), batch=1, heads=1) not in counted_cases():
        return {}
    records = _results(architecture).get("records", [])
    return {record["kernel"]: record for record in records if record["case"] == title(case)}


def source(architecture: str) -> str:
    """Return the versions and the commit that the counts are of, in a line."""
    machine = _results(architecture).get("machine")
    if machine is None:
        return f"no executed counts for {architecture}"
    return f"executed counts of {architecture} at commit {machine['commit']}, triton {machine['triton']}"


@functools.cache
def _results(architecture: str) -> dict[str, Any]:
    file = RESULTS / f"emulated-{architecture}" / "emulated.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return found
