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
    "fd": "mvar_models.evaluation.comparison:fd",
    "sfd": "mvar_models.evaluation.comparison:sfd",
    "is": "mvar_models.evaluation.comparison:inception",
    "precision": "mvar_models.evaluation.comparison:precision",
    "recall": "mvar_models.evaluation.comparison:recall",
    "density": "mvar_models.evaluation.comparison:density",
    "coverage": "mvar_models.evaluation.comparison:coverage",
    "kid": "mvar_models.evaluation.comparison:kid",
    "near_copies": "mvar_models.evaluation.comparison:near_copies",
    "label_agreement": "mvar_models.evaluation.agreement:label_agreement",
    "class_diversity": "mvar_models.evaluation.diversity:class_diversity",
}
# Those that `evaluate` reports: their functions take a `Comparison` and return figures by name. Any other row
# of that kind can be asked for by its name.
COMPARED = (
    "fd", "sfd", "is", "precision", "recall", "density", "coverage", "kid", "near_copies", "label_agreement",
    "class_diversity",
)  # fmt: skip
OF_ARRAYS = frozenset({"psnr", "codes_used", "perplexity", "frechet", "likelihood"})
# Those for which statistics are enough, so that no features are kept.
FROM_STATISTICS = frozenset({"fd", "sfd", "is"})


def metric(name: str) -> Callable[..., Any]:
    """Return the function that computes a metric; its docstring says what it takes.

    Raises:
        ValueError: no metric of that name.
    """
    if name not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {name!r}")
    function: Callable[..., Any] = resolve(METRICS[name])
    return function
