"""A run folder that a person can read: config.yaml, metrics.jsonl, checkpoints/step-000500/, model/.

Checkpoints appear complete or not at all: they are written under another name, flushed, and renamed.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from mvar_models.checkpoints import read_state, replacing, save_safetensors, write_text
from mvar_models.extras import require
from mvar_models.training.recipe import RunConfig, TransformerRun, VQVAERun

_KINDS: dict[str, type[RunConfig]] = {kind.kind: kind for kind in (TransformerRun, VQVAERun)}
_STATE = "training.pt"
_WEIGHTS = "weights.safetensors"


class RunFolder:
    """Everything that a run writes."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.metrics_file = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"
        self.samples = self.path / "samples"

    @classmethod
    def create(cls, config: RunConfig) -> RunFolder:
        """A new run; FileExistsError if the folder already holds one."""
        run = cls(config.out)
        if (run.path / "config.yaml").exists():
            raise FileExistsError(f"{run.path} already holds a run; go on with --resume {run.path}, or choose another --out")
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        write_text(run.path / "config.yaml", require("yaml", "train").safe_dump(config.to_dict(), sort_keys=False))
        return run

    def read_config(self) -> RunConfig:
        """The settings the run was started with; FileNotFoundError where there is no run."""
        file = self.path / "config.yaml"
        if not file.is_file():
            raise FileNotFoundError(f"{self.path} holds no run: it has no config.yaml")
        values = require("yaml", "train").safe_load(file.read_text(encoding="utf-8"))
        kind = _KINDS.get(values.get("kind")) if isinstance(values, dict) else None
        if kind is None:
            raise ValueError(f"{file} is not the configuration of a run")
        return kind.from_dict({**values, "out": str(self.path)})

    def log(self, values: dict[str, Any]) -> None:
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def save_picture(self, step: int, picture: Image.Image | None) -> None:
        if picture is None:
            return
        self.samples.mkdir(exist_ok=True)
        with replacing(self.samples / f"step-{step:06d}.png") as temporary:
            picture.save(temporary)

    def metrics(self) -> list[dict[str, Any]]:
        if not self.metrics_file.is_file():
            return []
        return [json.loads(line) for line in self.metrics_file.read_text(encoding="utf-8").splitlines()]

    def forget_after(self, step: int) -> None:
        """Drop the metrics of steps that will be made again; a line cut short by a kill goes too."""
        kept = []
        for line in self.metrics_file.read_text(encoding="utf-8").splitlines() if self.metrics_file.is_file() else []:
            try:
                values = json.loads(line)
            except json.JSONDecodeError:
                break
            if values["step"] <= step:
                kept.append(line + "\n")
        write_text(self.metrics_file, "".join(kept))

    def save_checkpoint(self, step: int, model: nn.Module, state: dict[str, Any], keep: int) -> Path:
        """Write step `step` and remove all but the last `keep`."""
        target = self.checkpoints / f"step-{step:06d}"
        temporary = self.checkpoints / f".writing-{step:06d}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        save_safetensors(model.state_dict(), temporary / _WEIGHTS)
        with (temporary / _STATE).open("wb") as file:
            torch.save({"step": step, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        for old in self._complete()[:-keep]:
            shutil.rmtree(old)
        return target

    def last_checkpoint(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """Weights and training state of the newest complete checkpoint, or None."""
        for leftover in self.checkpoints.glob(".writing-*"):
            shutil.rmtree(leftover)
        complete = self._complete()
        if not complete:
            return None
        state = torch.load(complete[-1] / _STATE, map_location="cpu", weights_only=True)
        return read_state(complete[-1] / _WEIGHTS), state

    def _complete(self) -> list[Path]:
        return sorted(self.checkpoints.glob("step-*"))
