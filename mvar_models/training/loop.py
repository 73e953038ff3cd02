"""The loop that every kind of training shares: learning rate, precision, clipping, metrics, checkpoints, resume.

Because random choices are functions of (seed, step), a checkpoint is the weights, the optimizer and the step, and resuming is exact.
"""

from __future__ import annotations

import abc
import logging
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from mvar_models.training.recipe import PRECISIONS, RunConfig, learning_rate_factor, parameter_groups
from mvar_models.training.run_folder import RunFolder

logger = logging.getLogger(__name__)

Report = Callable[[dict[str, Any]], None]


class Task(abc.ABC):
    """What is trained: a model, its loss at a step, its validation."""

    model: nn.Module

    @abc.abstractmethod
    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Loss of the global batch of `step`, and figures to log."""

    @abc.abstractmethod
    def validate(self) -> dict[str, Any]:
        """Figures on the held-out examples."""

    @abc.abstractmethod
    def save(self, run: RunFolder) -> None:
        """Write the final model, as `from_pretrained` takes it."""

    def after_step(self, step: int) -> None:  # noqa: B027  (a hook: doing nothing is right for most tasks)
        """Called after the optimizer's step."""

    def sample(self) -> Image.Image | None:
        """A picture of what the model does by now, or None."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold beside the model and its optimizer: tensors, numbers and containers of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Take back what `state_dict` gave."""


class Loop:
    """Trains a task into a run folder; `fit` returns the figures of the last validation."""

    def __init__(self, task: Task, config: RunConfig, run: RunFolder, report: Report | None = None) -> None:
        self.task = task
        self.config = config
        self.run = run
        self.report = report or (lambda values: None)
        self.device_type = torch.device(config.device).type
        groups = parameter_groups(task.model, config.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=self.device_type == "cuda")
        self.scaler = torch.amp.GradScaler(self.device_type, enabled=config.precision == "fp16")
        self.start = 0

    def resume(self) -> None:
        """Go on from the newest checkpoint of the run folder, if there is one."""
        found = self.run.last_checkpoint()
        if found is None:
            self.run.forget_after(0)
            return
        weights, state = found
        self.task.model.load_state_dict(weights, strict=True)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.task.load_state_dict(state["task"])
        self.start = state["step"]
        self.run.forget_after(self.start)

    def fit(self) -> dict[str, Any]:
        """Steps are counted from 1 in metrics.jsonl and in the names of checkpoints."""
        config, results = self.config, {}
        self.task.model.train()
        for index in range(self.start, config.steps):
            values = self.step(index)
            done = index + 1
            self.run.log(values)
            last = done == config.steps
            if last or (config.validate_every and done % config.validate_every == 0):
                results = self.validate(done)
                values = {**values, **{name: value for name, value in results.items() if isinstance(value, float)}}
            every = getattr(config, "sample_every", None)
            if every is not None and (last or (every and done % every == 0)):
                self.sample(done)
            if last or (config.save_every and done % config.save_every == 0):
                self.save_checkpoint(done)
            self.report(values)
        self.task.model.eval()
        self.task.save(self.run)
        return results or self.validate(config.steps)

    def step(self, index: int) -> dict[str, Any]:
        """One optimizer step; returns its line of metrics.jsonl."""
        begun = time.perf_counter()
        lr = self.config.lr * learning_rate_factor(index, self.config.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        dtype = PRECISIONS[self.config.precision]
        with torch.autocast(self.device_type, dtype=dtype, enabled=dtype is not None):
            loss, figures = self.task.loss(index)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.task.model.parameters(), self.config.clip)
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the loss of step {index + 1} is {value}; the last checkpoint is intact, lower the learning rate or use bf16"
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.task.after_step(index)
        rate = self.config.batch_size / (time.perf_counter() - begun)
        return {"step": index + 1, "loss": value, "lr": lr, "grad_norm": norm.item(), **figures, "images_per_second": rate}

    def validate(self, step: int) -> dict[str, Any]:
        self.task.model.eval()
        with torch.no_grad():
            results = self.task.validate()
        self.task.model.train()
        self.run.log({"step": step, **results})
        return results

    def sample(self, step: int) -> None:
        self.task.model.eval()
        self.run.save_picture(step, self.task.sample())
        self.task.model.train()

    def save_checkpoint(self, step: int) -> None:
        state = {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(), "task": self.task.state_dict()}
        self.run.save_checkpoint(step, self.task.model, state, self.config.keep)
