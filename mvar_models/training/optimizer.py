"""The optimizer's part of the released recipe: which parameters decay, and the learning rate over a run."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

# Not decayed: embeddings of position and scale, the attention's logit scale, the shared AdaLN's offsets,
# and every 1-d parameter.
_NOT_DECAYED = re.compile(
    r"(^|\.)(start_position|positions|scale_embedding|log_scale|modulation_offset)(\.|$)"
)


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
