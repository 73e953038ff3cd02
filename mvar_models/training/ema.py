"""A moving average of the weights (Polyak and Juditsky, 1992), which gives smoother samples.

Own code, because `torch.optim.swa_utils.AveragedModel` deep-copies the module, which FSDP2 refuses ("FSDP
does not support deepcopy"); here the average is sharded as the weights are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """After every step, average <- d average + (1 - d) weights; d = min(decay, (1 + step) / (10 + step)).

    Attributes:
        model: The module whose parameters are averaged.
        decay: The largest d. Early steps take a smaller one, so that the initial weights are soon forgotten.
        average: Name -> average, of the parameter's shape, type and sharding.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = model
        self.decay = decay
        self.average = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the weights after `step`, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self.model.named_parameters():
            _local(self.average[name]).lerp_(_local(parameter.detach()), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model the averaged weights inside the block, and its own again afterwards."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self.model.named_parameters():
            weights, average = _local(parameter.detach()), _local(self.average[name])
            kept = weights.clone()  # one parameter at a time, so that no second copy of the model is held
            weights.copy_(average)
            average.copy_(kept)

    def tensors(self) -> dict[str, Tensor]:
        """Return the averages by parameter name, for a checkpoint."""
        return self.average


def _local(tensor: Tensor) -> Tensor:
    """Return this process's shard, sharing its memory; a plain tensor is returned as it is."""
    shard: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return shard
