"""What a run writes while it trains. Rank 0 writes; if it cannot, all stop and one line says why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from mvar_models.distributed import Processes
from mvar_models.training.metrics_log import Metrics
from mvar_models.training.run_folder import RunFolder


class RunWriter:
    """Metrics, samples, models and checkpoints of a run; all processes call the same methods.

    Args:
        folder: The run folder.
        processes: The processes of the run.
        metrics: Where figures and samples go.

    Every method raises RunStopped on rank 0, and SystemExit elsewhere, where something cannot be written.
    """

    def __init__(self, folder: RunFolder, processes: Processes, metrics: Metrics) -> None:
        self.folder = folder
        self.processes = processes
        self.metrics = metrics

    def log(self, values: dict[str, Any]) -> None:
        """Write one line of metrics."""
        # Called every step, so ranks do not wait for each other; they will notice when rank 0 is gone.
        if self.processes.first:
            with self.folder.clear_failure("metrics"):
                self.metrics.add(values)

    def samples(self, step: int, image: Image.Image | None) -> None:
        """Write rank 0's `image` as the samples of `step`; None writes nothing."""
        self._write("samples", lambda: None if image is None else self.metrics.add_image(step, image))

    def model(self, what: str, target: Path, save: Callable[[Path], None]) -> None:
        """Write a model folder that appears complete or not at all.

        Args:
            what: Its name in messages.
            target: Where it appears.
            save: Writes the model to the empty folder that it gets, on rank 0.
        """
        self._write(what, lambda: self.folder.write_model(save, target))

    def checkpoint(
        self,
        save: Callable[[Path], None],
        progress: dict[str, Any],
        task: dict[str, Any],
        *,
        everywhere: bool,
        keep: int,
    ) -> None:
        """Write a checkpoint that appears complete or not at all.

        Args:
            save: Writes the tensors to the folder that it gets.
            progress: Small figures, of which `step` names the checkpoint.
            task: The task's own state.
            everywhere: Whether every process calls `save`, each for its shards; otherwise only rank 0 does.
            keep: Number of checkpoints to keep.
        """
        step = progress["step"]
        what = f"the checkpoint of step {step}"

        def begin() -> Path:
            with self.folder.clear_failure(what):
                return self.folder.begin_checkpoint(step)

        temporary = self.processes.run_on_rank0(begin)
        with self.processes.raising_together(), self.folder.clear_failure(what):
            if everywhere or self.processes.first:
                save(temporary)
        self._write(what, lambda: self.folder.finish_checkpoint(temporary, progress, task, keep))

    def _write(self, what: str, write: Callable[[], object]) -> None:
        def guarded() -> None:
            with self.folder.clear_failure(what):
                write()

        self.processes.run_on_rank0(guarded)
