"""The family suite: what each method around VAR costs and, on a small sample, what its images are worth.

Parameters, attended pairs and cache are counted, for the bundled models and for d16 at 256 px. Times are
ratios of calls that took turns. Images are sampled with the checkpoints' presets, so the distances compare
methods as they come; docs/family.md links the tables in which each is tuned.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import click
import numpy as np
import torch

from benchmarks.core import report
from benchmarks.core.activations import blank, fake
from benchmarks.core.measure import measure
from benchmarks.core.report import Record
from benchmarks.core.shapes import Shape
from benchmarks.suites.settings import Settings, written
from mvar_models.data.class_names import same_classes
from mvar_models.data.open import DIGITS, open_images
from mvar_models.evaluation.evaluator import evaluate, prepare_reference
from mvar_models.evaluation.features.network import feature_network
from mvar_models.evaluation.image_sets import SourceImages
from mvar_models.networks.scalekv import budgets
from mvar_models.networks.scorer import Scorer, ScorerConfig, load_scorer
from mvar_models.networks.transformer import ScaleTransformer
from mvar_models.pipeline import Pipeline, pipeline_for
from mvar_models.registry import architecture
from mvar_models.sampling.prefix_guidance import PrefixGuidance

_BUDGET, _CANDIDATES = 0.5, 4
_IMAGES, _QUICK_IMAGES, _REFERENCE = 90, 36, 450
_TIMED, _BATCH = 8, 30
_FIGURES = ("fd", "precision", "recall", "label_agreement")


@dataclass(frozen=True)
class Method:
    """A way of sampling.

    Attributes:
        name: Its row.
        needs: What it takes besides one model.
        model: Name of the model.
        refiner: Name of the model that samples the second half of the scales.
        budget: Share of the KV cache that is kept.
        candidates: That a scorer chooses from, at all scales but the first.
        passes: How often the transformer computes all scales but the first.
        sampler: As in the settings of sampling.
    """

    name: str
    needs: str = ""
    model: str = "mvar"
    refiner: str | None = None
    budget: float = 1.0
    candidates: int = 1
    passes: int = 1
    sampler: str = "ancestral"


METHODS = (
    Method("VAR", model="var"),
    Method("MVAR"),
    Method("Neon", "minutes of training on own samples", model="neon"),
    Method(f"LSRS, {_CANDIDATES} candidates", "a trained scorer", candidates=_CANDIDATES),
    Method(f"ScaleKV, {_BUDGET:.0%} of the keys", model="var", budget=_BUDGET),
    Method("VAR drafts, MVAR refines", "both models", model="var", refiner="mvar"),
    Method("MVAR drafts, VAR refines", "both models", refiner="var"),
    Method("prefix guidance", passes=2),
    Method("mixing codes", sampler="smooth"),
)


def run(settings: Settings) -> list[str]:
    """Count, time and judge the methods, on digits or, if --data names other images, on emoji."""
    bundle = "digits" if settings.data == DIGITS else "emoji"
    names = {"var": f"var-{bundle}", "mvar": f"mvar-{bundle}", "neon": settings.neon or f"mvar-{bundle}"}
    pipelines = {key: pipeline_for(name, device=str(settings.device)) for key, name in names.items()}
    config, vqvae = pipelines["mvar"].model.config, pipelines["mvar"].vqvae.config
    labels = np.arange(_QUICK_IMAGES if settings.quick else _IMAGES) % config.num_classes
    source = open_images(settings.data, vqvae.resolution)
    if not same_classes(source.class_names, config.class_names):
        raise ValueError(f"{settings.data} does not number its classes as mvar-{bundle} does")
    members = np.random.default_rng(0).permutation(source.train)[:_REFERENCE]
    training = SourceImages(source, np.sort(members), "training", vqvae.resolution)
    network = feature_network("efficientnet-lite0", device=settings.device)
    reference = prepare_reference(training, network, metrics=_FIGURES, per_class=False)
    with tempfile.TemporaryDirectory() as folder:
        fresh = ScorerConfig(config.num_classes, config.z_channels, config.sides)
        scorer = settings.scorer or str(Scorer(fresh).save_pretrained(folder))
        chosen = [each for each in METHODS if each is METHODS[0] or (settings.only or "") in each.name]
        calls = {method: partial(sampled, method, pipelines, scorer) for method in chosen}
        timed = {method: partial(call, labels[:_TIMED]) for method, call in calls.items()}
        timings = measure(timed, settings.device, settings.seconds, least_calls=3)
        records: list[Record] = []
        models = {key: pipeline.model for key, pipeline in pipelines.items()}
        for method, call in calls.items():
            click.echo(f"{method.name} ...", err=True)
            record = counted(method, models, load_scorer(scorer), itemsize=4)
            record |= {"time": timings[method].over(timings[METHODS[0]]), "needs": method.needs}
            # What was not trained has costs, but no figures.
            if (method.model != "neon" or settings.neon) and (method.candidates == 1 or settings.scorer):
                figures = evaluate(call(labels), reference, labels=labels, metrics=_FIGURES, per_class=False)
                record |= {name: figures[name] for name in _FIGURES}
            records.append(record)
    lines = [f"{bundle}, {len(labels)} images a method beside {len(training)} of training: few.", ""]
    lines += [*table(records), "", "Counted at d16, 256 px, bfloat16:", ""]
    large = d16()
    rows = [counted(method, large, Scorer(), itemsize=2) for method in chosen]
    lines += table(rows)
    report.write(
        settings.out, "family", settings.facts, [*records, *({"at": "d16", **r} for r in rows)], lines
    )
    return [*lines, written(settings.out, "family", [])]


def sampled(method: Method, pipelines: dict[str, Pipeline], scorer: str, labels: np.ndarray) -> np.ndarray:
    """Sample an image per label, (n, R, R, 3) uint8; image i takes seed i."""
    pipeline = pipelines[method.model]
    options: dict[str, Any] = {"cache_budget": method.budget, "sampler": method.sampler}
    if method.refiner:
        first = len(pipeline.model.config.sides) // 2
        options |= {"refiner": pipelines[method.refiner], "refine_from": first}
    if method.candidates > 1:
        options |= {"scorer": scorer, "candidates": method.candidates, "sampler": "scored"}
    if method.passes > 1:
        options["processors"] = [PrefixGuidance(pipeline.model, 0.5)]
    images: np.ndarray = pipeline(
        labels.tolist(), output_type="np", batch_size=_BATCH, batch_invariant=False, **options
    ).images
    return images


def counted(method: Method, models: dict[str, ScaleTransformer], scorer: Scorer, itemsize: int) -> Record:
    """Count parameters, attended pairs of a row and head, and the most bytes of keys and values of a row.

    Args:
        method: The method.
        models: The models by name.
        scorer: Of LSRS.
        itemsize: Bytes of a number in the cache.
    """
    model = models[method.model]
    sides = model.config.sides
    count = len(sides)
    first = count // 2 if method.refiner else count
    pairs, kept = _work(model, range(first), method.budget)
    pairs += (method.passes - 1) * _work(model, range(1, first))[0]
    parameters = model.num_parameters() + (scorer.num_parameters() if method.candidates > 1 else 0)
    if method.refiner:
        other = models[method.refiner]
        # A refiner with a cache computes the drafted scales too.
        more, others = _work(other, range(0 if _carries(other) else first, count))
        pairs, kept, parameters = pairs + more, max(kept, others), parameters + other.num_parameters()
    size = 2 * model.config.depth * model.config.width * itemsize
    return {"method": method.name, "parameters": parameters, "pairs": pairs, "cache": kept * size}


def _work(model: ScaleTransformer, scales: range, budget: float = 1.0) -> tuple[int, int]:
    """Return the attended pairs of scales, and the most keys that a layer keeps from those before."""
    config = model.config
    if not _carries(model):
        return sum(model.step_neighborhood(scale).attended_pairs() for scale in scales), 0
    mean = round(budget * (config.length - config.sides[-1] ** 2))
    keys = [row[0] for row in budgets(config.sides, config.depth, mean)]
    squares = [side * side for side in config.sides]
    return sum(squares[scale] * (keys[scale] + squares[scale]) for scale in scales), keys[scales[-1]]


def _carries(model: ScaleTransformer) -> bool:
    """Return whether a scale needs what the model kept of the scales before."""
    return model.new_state(torch.empty(0, dtype=torch.int64, device=model.device)).carries


def d16() -> dict[str, ScaleTransformer]:
    """Return VAR and MVAR of depth 16 at 256 px, without values."""
    with fake():
        models = {
            arch: blank(architecture(arch).network_class(), Shape(16).config(arch))
            for arch in ("var", "mvar")
        }
    return {**models, "neon": models["mvar"]}


def table(records: list[Record]) -> Iterator[str]:
    """Yield the Markdown table of records, with times and figures where they have some."""
    figures = [name for name in ("time", *_FIGURES, "needs") if any(name in record for record in records)]
    titles = ["method", "parameters, M", "attended pairs", "KB of cache a row"]
    yield from report.header([*titles, *(name.replace("_", " ") for name in figures)])
    for each in records:
        cells = [
            each["method"],
            f"{each['parameters'] / 1e6:.2f}",
            f"{each['pairs']:,}",
            f"{each['cache'] / 1e3:.0f}",
        ]
        cells += [_cell(name, each.get(name, "")) for name in figures]
        yield report.row(cells)


def _cell(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.1f}" if name == "fd" else f"{value:.2f}"
