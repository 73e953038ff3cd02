"""Writing a run folder while its run trains. Rank 0 writes; if it cannot, all stop and one line says why."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError

from mvar_models.devices import is_out_of_memory
from mvar_models.distributed import Processes, RunStopped
from mvar_models.files import replacing
from mvar_models.optional import require
from mvar_models.training.run_folder import PROGRESS, TASK, WRITING, RunFolder


class RunWriter:
    """Writes metrics, samples, models and checkpoints; all processes call the same methods.

    Checkpoints and models appear complete or not at all: they are written under another name, then renamed.
    Every method raises RunStopped on rank 0, and SystemExit elsewhere, where something cannot be written.

    Args:
        folder: The run folder.
        processes: The processes of the run; this one alone by default.
        tensorboard: Also write metrics and samples for TensorBoard.

    Raises:
        ImportError: TensorBoard is not installed.
    """

    def __init__(
        self, folder: RunFolder, processes: Processes | None = None, *, tensorboard: bool = False
    ) -> None:
        if tensorboard:
            require("tensorboard", "tensorboard")
        self.folder = folder
        self.processes = processes or Processes()
        self._tensorboard = tensorboard
        self._board: Any = None

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._board is not None:
            self._board.close()
            self._board = None

    def log(self, values: dict[str, Any]) -> None:
        """Write one line of metrics. In TensorBoard a list, such as the loss per scale, becomes curves."""
        # Called every step, so ranks do not wait for each other; they will notice when rank 0 is gone.
        if not self.processes.first:
            return
        with self._failure_in_one_line("metrics"):
            self.folder.log(values)
            board = self._open_board(values["step"])
            if board is None:
                return
            for name, value in values.items():
                if isinstance(value, list):
                    for index, entry in enumerate(value):
                        board.add_scalar(f"{name}/{index}", entry, values["step"])
                elif name != "step" and value is not None:
                    board.add_scalar(name, value, values["step"])

    def samples(self, step: int, image: Image.Image | None) -> None:
        """Write rank 0's `image` as the samples of `step`; None writes nothing."""
        with self._writing("samples") as writes:
            if not writes or image is None:
                return
            self.folder.samples.mkdir(exist_ok=True)
            with replacing(self.folder.samples_of(step)) as temporary:
                image.save(temporary)
            board = self._open_board(step)
            if board is not None:
                board.add_image("samples", np.asarray(image), step, dataformats="HWC")

    def model(self, what: str, target: Path, save: Callable[[Path], None]) -> None:
        """Let `save` write a model folder, whose files then replace those of `target`.

        One by one, the configuration last: a process that loads the model meanwhile finds all of them.

        Args:
            what: Its name in messages.
            target: Where it appears.
            save: Writes the model to the empty folder that it gets, on rank 0.
        """
        temporary = self.folder.path / f"{WRITING}{target.name}"
        with self._writing(what) as writes:
            if not writes:
                return
            _make_empty(temporary)
            save(temporary)
            if not target.exists():
                _take_place(temporary, target)
                return
            files = [file for file in temporary.rglob("*") if file.is_file()]
            for file in sorted(files, key=lambda file: (len(file.parts), file.name), reverse=True):
                (target / file.relative_to(temporary)).parent.mkdir(exist_ok=True)
                os.replace(file, target / file.relative_to(temporary))
            shutil.rmtree(temporary)

    def checkpoint(
        self,
        save: Callable[[Path], None],
        progress: dict[str, Any],
        task: dict[str, Any],
        *,
        everywhere: bool,
        keep: int,
    ) -> None:
        """Write a checkpoint and remove old ones.

        Args:
            save: Writes the tensors to the folder that it gets.
            progress: Small figures, of which `step` names the checkpoint.
            task: The task's own state.
            everywhere: Whether every process calls `save`, each for its shards; otherwise only rank 0 does.
            keep: Number of checkpoints to keep.
        """
        step = progress["step"]
        what = f"the checkpoint of step {step}"
        temporary = self.folder.checkpoints / f"{WRITING}{step:06d}"
        with self._writing(what) as writes:
            if writes:
                _make_empty(temporary)
        with self._writing(what) as writes:
            if writes or everywhere:
                save(temporary)
        with self._writing(what) as writes:
            if not writes:
                return
            if task:
                with (temporary / TASK).open("wb") as file:
                    torch.save(task, file)
                    _flush(file)
            with (temporary / PROGRESS).open("w", encoding="utf-8") as text:
                json.dump(progress, text, indent=2)
                _flush(text)
            _take_place(temporary, self.folder.checkpoint_of(step))
            for old in self.folder.complete_checkpoints()[:-keep]:
                shutil.rmtree(old)

    def _open_board(self, step: int) -> Any:
        """Return TensorBoard's writer, or None. It drops what a resumed run will compute again."""
        if self._tensorboard and self._board is None:
            writer = require("torch.utils.tensorboard", "tensorboard").SummaryWriter
            self._board = writer(str(self.folder.path / "tensorboard"), purge_step=step)
        return self._board

    @contextmanager
    def _writing(self, what: str) -> Iterator[bool]:
        """Yield whether this process is the one that writes; if it fails, all stop."""
        with self.processes.raising_together(), self._failure_in_one_line(what):
            yield self.processes.first

    @contextmanager
    def _failure_in_one_line(self, what: str) -> Iterator[None]:
        """Turn a failure to write, such as a full disk, into RunStopped; remove partial files."""
        try:
            yield
        except (OSError, SafetensorError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise  # the disk is not full
            self.folder.remove_leftovers()
            advice = f"free some space and continue with --resume {self.folder.path}"
            kept = f"{self.folder.intact()}; {advice}" if self.folder.last_step() else self.folder.intact()
            raise RunStopped(
                f"{what} could not be written to {self.folder.path}: {' '.join(str(error).split())}; {kept}"
            ) from error


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _take_place(temporary: Path, target: Path) -> None:
    """Rename a complete folder to `target`, replacing an older folder of that name."""
    if target.exists():
        replaced = temporary.with_name(f"{temporary.name}-replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        target.rename(replaced)
        temporary.rename(target)
        shutil.rmtree(replaced)
    else:
        temporary.rename(target)
    if hasattr(os, "O_DIRECTORY"):  # so that the rename survives a power cut too
        handle = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
