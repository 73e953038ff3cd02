"""The optimizer's part of a step: learning rate, weight decay, loss scale, and the average of the weights."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# Not decayed: embeddings of position and scale, the attention's logit scale, the shared AdaLN's offsets,
# and every 1-d parameter.
_NOT_DECAYED = re.compile(
    r"(^|\.)(start_position|positions|scale_embedding|log_scale|modulation_offset)(\.|$)"
)
_SCALE_AT_START = 2.0**16
_GROW_EVERY = 2000
_SMALLEST_SCALE = 2.0**-10


def learning_rate_factor(step: int, steps: int) -> float:
    """Return the learning rate at `step` as a fraction of its peak.

    It warms up from 0.005 over a fiftieth of the run, stays at 1 for 5 % of the rest, then falls to 0.1.

    Args:
        step: Optimizer step, from 0.
        steps: Length of the run.
    """
    warmup = steps / 50
    if step < warmup:
        return 0.005 + 0.995 * step / warmup
    progress = (step - warmup) / max(steps - 1 - warmup, 1)
    if progress < 0.05:
        return 1.0
    return 1.0 - 0.9 * min((progress - 0.05) / 0.95, 1.0)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return AdamW's two parameter groups: decayed and not."""
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (kept if parameter.dim() < 2 or _NOT_DECAYED.search(name) else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


class LossScale:
    """The factor of the loss in fp16 (arXiv 1710.03740): halved when gradients overflow, doubled after 2,000
    steps without an overflow.

    Own code rather than `torch.amp.GradScaler`: the global norm, which every rank has for clipping, also
    notices when only the sum of squares overflows, and a scale that keeps falling is an error here.

    Attributes:
        enabled: Whether the factor ever differs from 1.
        factor: What the loss is multiplied by.
        good_steps: Steps since the last overflow.
        skipped_steps: Overflows since the run began.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.factor = _SCALE_AT_START if enabled else 1.0
        self.good_steps = 0
        self.skipped_steps = 0

    def overflowed(self) -> None:
        """Record a skipped step and halve the factor.

        Raises:
            FloatingPointError: the gradients overflow whatever the factor.
        """
        self.factor /= 2
        self.good_steps = 0
        self.skipped_steps += 1
        if self.factor < _SMALLEST_SCALE:
            raise FloatingPointError(
                "fp16 gradients overflow even when the loss is scaled down; "
                "lower the learning rate or use bf16"
            )

    def stepped(self) -> None:
        """Record a step without an overflow."""
        self.good_steps += 1
        if self.enabled and self.good_steps % _GROW_EVERY == 0:
            self.factor *= 2

    def state_dict(self) -> dict[str, float]:
        return {"factor": self.factor, "good_steps": self.good_steps, "skipped_steps": self.skipped_steps}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.factor = state["factor"]
        self.good_steps, self.skipped_steps = int(state["good_steps"]), int(state["skipped_steps"])


class WeightAverage:
    """A moving average of the weights (Polyak and Juditsky, 1992), which gives smoother samples.

    After every step, average <- d average + (1 - d) weights; d = min(decay, (1 + step) / (10 + step)). Own
    code, because `torch.optim.swa_utils.AveragedModel` deep-copies the module, which FSDP2 refuses; here the
    average is sharded as the weights are.

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


def _local(tensor: Tensor) -> Tensor:
    """Return this process's shard, sharing its memory; a plain tensor is returned as it is."""
    shard: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return shard
