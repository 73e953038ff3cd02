"""Loss scaling for fp16 (Micikevicius et al., arXiv 1710.03740); the global gradient norm shows an overflow.

Own code rather than `torch.amp.GradScaler`: the norm, which every rank has for clipping, also notices when
only the sum of squares overflows, and a scale that keeps falling is an error here.
"""

from __future__ import annotations

_START = 2.0**16
_GROW_EVERY = 2000
_SMALLEST = 2.0**-10


class LossScale:
    """The factor of the loss: halved when gradients overflow, doubled after 2,000 steps without an overflow.

    Attributes:
        enabled: Whether the factor ever differs from 1.
        factor: What the loss is multiplied by.
        good_steps: Steps since the last overflow.
        skipped_steps: Overflows since the run began.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.factor = _START if enabled else 1.0
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
        if self.factor < _SMALLEST:
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
