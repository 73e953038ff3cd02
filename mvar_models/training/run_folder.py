"""A run folder that a person can read.

config.yaml          all settings
environment.json     versions, machine and command of every start
metrics.jsonl        one line per step, and one per validation
samples/             a grid of samples per step
checkpoints/         step-000500/: everything that resuming needs
best/  model/        the best and the final model, which `from_pretrained` loads
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from mvar_models.checkpoints.tensor_files import read_values
from mvar_models.files import held, sweep, write_text
from mvar_models.records import (
    Figure,
    Must,
    parse_json,
    read_lines,
    read_record,
    record_of,
    within,
)
from mvar_models.training.settings import RunSettings, ScorerSettings, TransformerSettings, VQVAESettings
from mvar_models.yaml_text import read_yaml, yaml_of

logger = logging.getLogger(__name__)

_KINDS: dict[str, type[RunSettings]] = {
    kind.kind: kind for kind in (TransformerSettings, VQVAESettings, ScorerSettings)
}
PROGRESS, TASK = "progress.json", "task.pt"
# Begins the names of folders that are being written.
WRITING = ".writing-"

_Line = Annotated[
    dict[str, Any], Must("and a whole number as step", lambda line: type(line.get("step")) is int)
]


@dataclass(frozen=True)
class _LossScale:
    factor: Annotated[float, within(2.0**-64, 2.0**64)]
    good_steps: int
    skipped_steps: int


@dataclass(frozen=True)
class _Progress:
    ignores_unknown: ClassVar[bool] = True

    step: int
    loss_scale: _LossScale
    best: Figure | None
    examples: int
    fingerprint: str
    stamps: str


@dataclass(frozen=True)
class SavedStep:
    """A checkpoint that was read, but for its tensors.

    Attributes:
        folder: Where its tensors are.
        progress: Step, loss scale, best figure, and what identifies the data.
        task: The task's own state (`Task.state_dict`).
    """

    folder: Path
    progress: dict[str, Any]
    task: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.progress["step"])


class RunFolder:
    """The files of a run.

    Args:
        path: The folder, which need not exist.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.metrics_file = self.path / "metrics.jsonl"
        self.environment_file = self.path / "environment.json"
        self.checkpoints = self.path / "checkpoints"
        self.samples = self.path / "samples"
        self.model = self.path / "model"
        self.best = self.path / "best"

    @classmethod
    def create(cls, settings: RunSettings) -> RunFolder:
        """Create the folder of a new run.

        A folder is reused if its run stopped before it logged a step, or if it had these settings and stopped
        before its first checkpoint: the same command starts it again.

        Raises:
            FileExistsError: it already holds a run.
            FolderInUse: another process trains there.
        """
        run = cls(settings.out)
        run.path.mkdir(parents=True, exist_ok=True)
        with run.held():
            logged = run.has_logged()
            if run.last_step() or run.model.exists() or (logged and not run.has_settings(settings)):
                raise FileExistsError(
                    f"{run.path} already holds a run; continue with --resume {run.path}, "
                    "or choose another --out"
                )
            run.checkpoints.mkdir(exist_ok=True)
            write_text(run.path / "config.yaml", yaml_of(settings.to_dict()))
        return run

    def held(self) -> AbstractContextManager[None]:
        """Keep other processes from training in the folder while the block runs; see `files.held`."""
        return held(self.path, "trains there")

    def has_settings(self, settings: RunSettings) -> bool:
        """Whether the folder's run has these settings, on whichever device."""
        try:
            found = self.read_settings()
        except (OSError, ValueError):
            return False
        return replace(found, device=settings.device) == replace(settings, out=str(self.path))

    def read_settings(self) -> RunSettings:
        """Return the settings that the run was started with.

        Raises:
            FileNotFoundError: there is no run.
            ValueError: config.yaml is not the configuration of a run.
        """
        file = self.path / "config.yaml"
        if not file.is_file():
            raise FileNotFoundError(f"{self.path} holds no run: it has no config.yaml")
        values = record_of(read_yaml(file), dict[str, Any], str(file))
        kind = _KINDS.get(str(values.get("kind")))
        if kind is None:
            raise ValueError(f"{file} is not the configuration of a run: kind is {values.get('kind')!r}")
        return kind.from_dict({**values, "out": str(self.path)}, str(file))

    def extend(self, steps: int) -> RunSettings:
        """Set the run's number of steps to at least as many as it has, and return its settings.

        Raises:
            ValueError: `steps` are fewer.
            FolderInUse: another process trains there.
        """
        with self.held():
            settings = self.read_settings()
            extended = replace(settings, steps=steps)
            if steps < settings.steps:
                raise ValueError(f"steps must be at least the {settings.steps:,} of {self.path}, got {steps}")
            write_text(self.path / "config.yaml", yaml_of(extended.to_dict()))
        return extended

    def add_start(self, environment: dict[str, Any]) -> None:
        """Record the environment of a start, or of a resumption."""
        starts = (
            read_record(self.environment_file, list[dict[str, Any]])
            if self.environment_file.is_file()
            else []
        )
        write_text(self.environment_file, json.dumps([*starts, environment], indent=2) + "\n")

    def log(self, values: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def has_logged(self) -> bool:
        """Whether a step was logged, damaged or not."""
        return self.metrics_file.exists() and self.metrics_file.stat().st_size > 0

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl, without a last one that is cut short or still being written.

        Raises:
            ValueError: a line is damaged.
        """
        return read_lines(self.metrics_file, _Line) if self.metrics_file.is_file() else []

    def figure(self, step: int, name: str) -> float | None:
        """Return the figure `name` of `step` in metrics.jsonl, or None."""
        found = (line[name] for line in self.metrics() if line["step"] == step and name in line)
        return record_of({name: next(found, None)}, dict[str, Figure | None], str(self.metrics_file))[name]

    def has_samples(self, step: int) -> bool:
        """Whether the samples of `step` are written."""
        return self.samples_of(step).exists()

    def samples_of(self, step: int) -> Path:
        """Return the file that holds the samples of `step`."""
        return self.samples / f"step-{step:06d}.png"

    def forget_after(self, step: int) -> None:
        """Drop the metrics of steps that will be recomputed, and all from a line that a crash damaged."""
        try:
            lines = self.metrics()
        except ValueError as error:
            lines = self._undamaged()
            logger.warning("%s; the run goes on with the %d lines before it", error, len(lines))
        write_text(
            self.metrics_file, "".join(json.dumps(line) + "\n" for line in lines if line["step"] <= step)
        )

    def _undamaged(self) -> list[dict[str, Any]]:
        lines = []
        with self.metrics_file.open("rb") as file:
            for text in file:
                try:
                    lines.append(record_of(parse_json(text, ""), _Line, ""))
                except ValueError:
                    break
        return lines

    def last_step(self) -> int:
        """Return the step of the newest complete checkpoint, 0 without one."""
        complete = self.complete_checkpoints()
        return (_step_of(complete[-1]) or 0) if complete else 0

    def intact(self) -> str:
        """Return what a message about a failed run says is left: the last checkpoint, or none."""
        last = self.last_step()
        return f"the checkpoint of step {last} is intact" if last else "there is no checkpoint yet"

    def checkpoint_of(self, step: int) -> Path:
        """Return the folder of the checkpoint of `step`."""
        return self.checkpoints / f"step-{step:06d}"

    def checkpoint(self, step: int) -> SavedStep:
        """Read the checkpoint of `step`.

        Raises:
            ValueError: it cannot be read.
        """
        folder = self.checkpoint_of(step)
        try:
            progress = read_record(folder / PROGRESS, dict[str, Any])
            found = record_of(progress, _Progress, PROGRESS)
            if found.step != step:
                raise ValueError(f"{PROGRESS} is of step {found.step}")
            task = read_values(folder / TASK) if (folder / TASK).is_file() else {}
            if not isinstance(task, dict):
                raise ValueError(f"{TASK} holds {type(task).__name__}, not a state")
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{folder} is not a checkpoint that this version wrote ({error}); "
                "remove it to resume from an earlier one"
            ) from None
        return SavedStep(folder, progress, task)

    def remove_leftovers(self) -> None:
        """Remove what a killed process was writing."""
        for parent in (self.checkpoints, self.path):
            for leftover in parent.glob(f"{WRITING}*"):
                shutil.rmtree(leftover, ignore_errors=True)
        for parent in (self.path, self.samples):
            sweep(parent)

    def complete_checkpoints(self) -> list[Path]:
        """Return the folders of complete checkpoints, the oldest first."""
        # What else lies there, such as a copy "step-000500-old", is not ours.
        named = (path for path in self.checkpoints.glob("step-*") if _step_of(path) is not None)
        return sorted(named, key=lambda path: _step_of(path) or 0)


def _step_of(folder: Path) -> int | None:
    named = re.fullmatch(r"step-([0-9]{6,18})", folder.name)
    return int(named[1]) if named else None
