"""What a loop trains: a model, its loss at a step, its validation."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor, nn

from mvar_models.distributed import Processes
from mvar_models.evaluation.image_sets import ImageSet
from mvar_models.pipeline.identity import network_identity
from mvar_models.training.optimizer import learning_rate_factor


class Task(abc.ABC):
    """A model with its data.

    Attributes:
        model: The module that is trained, averaged and checkpointed.
        compute: The module whose forward gives the loss, which DDP and FSDP hook into.
        processes: The processes that share the work; this one alone until `join`.
        best_figure: The figure of `validate` that decides which model is kept as the best.
        higher_is_better: Whether a larger `best_figure` is better.
    """

    model: nn.Module
    compute: nn.Module
    processes: Processes = Processes()
    best_figure: ClassVar[str] = "val_loss"
    higher_is_better: ClassVar[bool] = False

    @abc.abstractmethod
    def loss(self, step: int, rows: slice | None = None) -> tuple[Tensor, dict[str, float]]:
        """Return the mean loss of a part of the global batch of `step`, and figures to log.

        Args:
            step: Optimizer step, from 0.
            rows: The part of the batch, None for all of it.
        """

    @abc.abstractmethod
    def validate(self) -> dict[str, Any]:
        """Return figures on the held-out examples. All processes call it and get the same figures."""

    @abc.abstractmethod
    def save(self, folder: Path, model: nn.Module) -> None:
        """Write `model` so that `from_pretrained` loads the folder.

        Args:
            folder: An empty folder.
            model: An ordinary module of the kind of `self.model`, with the weights to write.
        """

    @property
    def fingerprint(self) -> str:
        """A digest of the data: a run is not resumed on other data. Empty: not checked."""
        return ""

    @property
    def stamps(self) -> str:
        """A digest of when the files that steps read were changed. Empty: none are read."""
        return ""

    @property
    def num_examples(self) -> int:
        """Number of training examples; 0 where unknown."""
        return 0

    def facts(self) -> dict[str, Any]:
        """Return what must be the same in all processes: the data, and the weights to start from."""
        config: Any = getattr(self.model, "config", None)
        return {
            "the number of training examples": self.num_examples,
            "the fingerprint of the data": self.fingerprint,
            "the configuration of the model": repr(config),
            "the model": network_identity(self.model),
        }

    def sharded_modules(self) -> Sequence[nn.Module]:
        """Return the parts of `compute` that FSDP shards one by one, such as a transformer's blocks."""
        return ()

    def compiled_modules(self) -> Sequence[nn.Module]:
        """Return the modules that `--compile` compiles one by one; their forward must be what is called."""
        return self.sharded_modules() or [self.model]

    def unused_parameters(self) -> bool:
        """Whether some steps leave parameters without a gradient, which DDP then has to look for."""
        return False

    def join(self, processes: Processes) -> None:
        """Share validation, and sums over the global batch, with these processes from now on."""
        self.processes = processes

    def learning_rate_factor(self, step: int, steps: int) -> float:
        """Return the learning rate at a step, from 0, of `steps`, as a fraction of its peak."""
        return learning_rate_factor(step, steps)

    def begin_step(self, step: int, parts: Sequence[slice]) -> None:  # noqa: B027  (a hook, as `after_step`)
        """Prepare a step; `loss` is asked for each of `parts`, this process's micro-batches, next."""

    def after_step(self, step: int) -> None:  # noqa: B027  (a hook: doing nothing is right for most tasks)
        """Run after the optimizer's step."""

    def sample(self, model: nn.Module) -> Image.Image | None:
        """Return an image of what `model` generates or reconstructs by now, or None."""
        return None

    def compared(self, model: nn.Module, count: int) -> tuple[ImageSet, ImageSet]:
        """Return images that `model` makes by now, and the held-out images to compare them with.

        Args:
            model: An ordinary module of the kind of `self.model`.
            count: Number of images of each set, at most.

        Raises:
            ValueError: there are no images to compare.
        """
        raise ValueError(f"evaluate_every: {type(self).__name__} has no images to compare")

    def state_dict(self) -> dict[str, Any]:
        """Return what else a checkpoint must hold: tensors, numbers, and containers of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Restore what `state_dict` returned."""
