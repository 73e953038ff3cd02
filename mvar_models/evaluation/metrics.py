"""The table of metrics. A new metric is a function in a file of this folder, and one row of `METRICS`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mvar_models.registry import resolve

METRICS: dict[str, str] = {
    "psnr": "mvar_models.evaluation.reconstruction:psnr",
    "codes_used": "mvar_models.evaluation.codebook:codes_used",
    "perplexity": "mvar_models.evaluation.codebook:perplexity",
    "frechet": "mvar_models.evaluation.frechet:frechet_distance",
    "likelihood": "mvar_models.evaluation.likelihood:held_out_losses",
}


def metric(name: str) -> Callable[..., Any]:
    """Return the function that computes a metric; its docstring says what it takes.

    Raises:
        ValueError: no metric of that name.
    """
    if name not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {name!r}")
    function: Callable[..., Any] = resolve(METRICS[name])
    return function
