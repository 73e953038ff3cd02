"""What a loop trains: a model, its loss at a step, its validation."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor, nn

# Given figures of which each is a sum over this process's part, the sums over all processes.
SumOverProcesses = Callable[[Tensor], Tensor]


class Task(abc.ABC):
    """A model with its data.

    Attributes:
        model: what is trained, saved and averaged.
        compute: the module whose forward gives the loss, where several processes or FSDP train; they hook into its forward. None: the task
            trains in one process only.
        best_figure: the figure of `validate` by which the best model is kept; lower is better unless `higher_is_better`.
    """

    model: nn.Module
    compute: nn.Module | None = None
    best_figure: ClassVar[str] = "val_loss"
    higher_is_better: ClassVar[bool] = False

    @abc.abstractmethod
    def loss(self, step: int, rows: slice | None = None) -> tuple[Tensor, dict[str, float]]:
        """Mean loss of the global batch of `step`, and figures to log.

        rows: the part of the batch to compute, None for all of it; only tasks with a `compute` are asked for parts.
        """

    @abc.abstractmethod
    def validate(self) -> dict[str, Any]:
        """Figures on the held-out examples; called by all processes, and the same in all of them."""

    @abc.abstractmethod
    def save(self, folder: Path) -> None:
        """Write the model as `from_pretrained` takes it."""

    @property
    def fingerprint(self) -> str:
        """Tells one dataset from another: a run does not go on with other data. Empty: not checked."""
        return ""

    @property
    def num_examples(self) -> int:
        """Training examples; 0 where not known."""
        return 0

    def sharded_modules(self) -> Sequence[nn.Module]:
        """Parts of `compute` that FSDP shards one by one: a transformer's blocks."""
        return ()

    def compiled_modules(self) -> Sequence[nn.Module]:
        """What `--compile` compiles one by one: modules whose forward is called."""
        return self.sharded_modules() or [self.model]

    def unused_parameters(self) -> bool:
        """Whether some steps leave parameters without a gradient, which DDP must look for."""
        return False

    def share_validation(self, rank: int, world_size: int, total: SumOverProcesses) -> None:  # noqa: B027
        """Validate one part in `world_size` from now on; `total` adds up over processes."""

    def after_step(self, step: int) -> None:  # noqa: B027  (a hook: doing nothing is right for most tasks)
        """Called after the optimizer's step."""

    def sample(self) -> Image.Image | None:
        """A picture of what the model draws by now, or None."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold beside the model and its optimizer: tensors, numbers and containers of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Take back what `state_dict` gave."""
