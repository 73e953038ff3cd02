"""`--evaluate-every`: the Frechet distance between a model's images during training and held-out images.

Labels and seeds of the samples are the same every time, so the curve shows the model and not chance; and
training, whose random choices are functions of (seed, step), is not touched.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any, TypeVar

from torch import nn

from mvar_models.distributed import Processes
from mvar_models.evaluation.evaluator import Reference, prepare_reference
from mvar_models.evaluation.features.network import DEFAULT_FEATURES, FeatureNetwork, feature_network
from mvar_models.evaluation.scores import rank_warning
from mvar_models.evaluation.summary import Summary, summarize
from mvar_models.training.settings import RunSettings
from mvar_models.training.task import Task

logger = logging.getLogger(__name__)

S = TypeVar("S", bound=RunSettings)

_WITHOUT_NETWORK = "pixels"
_BATCH = 16


class HeldOutDistance:
    """Measures a task's images in the course of training.

    The processes share the images, but with FSDP, where rank 0 alone has all weights and makes them all.

    Raises:
        ValueError: the features are unknown, or the task has no images.
        FileNotFoundError: the weights of the feature network are not there.
        ImportError: a package of the feature network is not installed.
    """

    def __init__(self, task: Task, settings: RunSettings, processes: Processes) -> None:
        self._task = task
        self._count = settings.evaluate_images
        self._processes = processes
        self._alone = settings.fsdp
        self._network = _network(settings, processes)
        self._reference: Reference | None = None

    def measure(self, model: nn.Module) -> dict[str, float]:
        """Return {"fd": the distance}; all processes call it and get the same.

        Args:
            model: What `Parallel.plain_model` returned, in evaluation mode.
        """
        if self._alone:
            device = self._processes.device
            return self._processes.run_on_rank0(lambda: self._measure(model.to(device), Processes()))
        return self._measure(model, self._processes)

    def _measure(self, model: nn.Module, workers: Processes) -> dict[str, float]:
        made, real = self._task.compared(model, self._count)
        shared: dict[str, Any] = {"batch_size": _BATCH, "processes": workers}
        first = self._reference is None
        if self._reference is None:
            self._reference = prepare_reference(real, self._network, metrics=["fd"], **shared)
        summary = summarize(made, self._network, keep=False, **shared)
        reference = self._reference
        return workers.run_on_rank0(lambda: {"fd": _distance(summary, reference, first)})


def resolve_features(settings: S, processes: Processes) -> S:
    """Return the settings with `evaluate_features` filled in, having loaded the network once.

    By default these are the default features, or pixels if their packages are not installed. The
    run's config.yaml keeps them, since distances of different features cannot be compared.

    Raises:
        ValueError, FileNotFoundError, ImportError: as for `HeldOutDistance`.
    """
    if settings.evaluate_every is None:
        return settings
    if settings.evaluate_features is None:
        name = processes.run_on_rank0(lambda: _default(settings))
        settings = replace(settings, evaluate_features=name)
    _network(settings, processes)
    return settings


def _default(settings: RunSettings) -> str:
    try:
        feature_network(DEFAULT_FEATURES, weights=settings.evaluate_weights)
    except ImportError as error:
        logger.warning("--evaluate-every compares %s, because %s", _WITHOUT_NETWORK, error)
        return _WITHOUT_NETWORK
    return DEFAULT_FEATURES


def _network(settings: RunSettings, processes: Processes) -> FeatureNetwork:
    name = settings.evaluate_features or DEFAULT_FEATURES
    # One process downloads, and says what is missing.
    return processes.first_then_others(
        lambda: feature_network(name, device=processes.device, weights=settings.evaluate_weights)
    )


def _distance(summary: Summary | None, reference: Reference, first: bool) -> float:
    assert summary is not None, "rank 0 has the summaries"
    assert reference.summary is not None
    if first:
        for each, what in ((summary, "evaluated"), (reference.summary, "held-out")):
            warning = rank_warning(each.moments, what)
            if warning is not None:
                logger.warning("--evaluate-every: %s; it can be compared within this run", warning)
    return reference.frechet.distance(summary.moments)
