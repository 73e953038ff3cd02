"""A moving average of the weights (Polyak and Juditsky, 1992): smoother samples than the last step's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mvar_models.training.processes import local


class WeightAverage:
    """average <- d average + (1 - d) weights after every step; sharded as the model is.

    d at step n (from 1) is the smaller of `decay` and (1 + n) / (10 + n), so that a short run's average is not what it began with.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = model
        self.decay = decay
        self.average = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self.model.named_parameters():
            local(self.average[name]).lerp_(local(parameter.detach()), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the average for its weights inside the block, and its own again after."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self.model.named_parameters():
            weights, average = local(parameter.detach()), local(self.average[name])
            kept = weights.clone()
            weights.copy_(average)
            average.copy_(kept)

    def tensors(self) -> dict[str, Tensor]:
        return self.average
