"""The loop that every kind of training shares: learning rate, precision, clipping, metrics, checkpoints,
resuming.

Random choices are functions of (seed, step, place in the batch). So weights, optimizer and step are a whole
checkpoint, resuming is exact, and the number of processes and of micro-batches changes only the rounding of
sums.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mvar_models.devices import is_out_of_memory
from mvar_models.distributed import Processes, RunStopped, lost_process
from mvar_models.environment import peak_memory_gb
from mvar_models.files import damage_named
from mvar_models.training.held_out_distance import HeldOutDistance
from mvar_models.training.optimizer import LossScale, WeightAverage, parameter_groups
from mvar_models.training.parallel import Parallel, global_norm, pieces
from mvar_models.training.run_folder import RunFolder
from mvar_models.training.run_writer import RunWriter
from mvar_models.training.settings import PRECISIONS, RunSettings
from mvar_models.training.signals import StopSignals, first_signal, received, stopped_by
from mvar_models.training.state import TrainingState, prepare_optimizer
from mvar_models.training.task import Task

logger = logging.getLogger(__name__)

StepReport = Callable[[dict[str, Any]], None]


class Loop:
    """Trains a task into a run folder. All processes of the run create one and call the same methods.

    Args:
        task: What to train.
        settings: The run's settings.
        folder: The run folder, which rank 0 writes.
        report: Called on rank 0 with the figures of each step.
        processes: The processes of the run; this one alone by default.

    Attributes:
        start: Number of steps done before `fit`, 0 unless resumed.
        best: The best value of the task's `best_figure` so far.
    """

    def __init__(
        self,
        task: Task,
        settings: RunSettings,
        folder: RunFolder,
        report: StepReport | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.task = task
        self.settings = settings
        self.folder = folder
        self.processes = processes or Processes(device=settings.device)
        self.report = report if report is not None and self.processes.first else (lambda values: None)
        self.parts = pieces(settings.batch_size, self.processes.world_size * settings.accumulate)
        if settings.activation_checkpointing:
            model: Any = task.model
            model.gradient_checkpointing_enable()
        self.processes.advise(self._how_to_go_on)
        task.join(self.processes)
        if not self.processes.alone:
            self.processes.require_same(task.facts())
        self.parallel = Parallel(task, self.processes, fsdp=settings.fsdp, compiled=settings.compile)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(task.model, settings.weight_decay),
            lr=settings.lr,
            betas=settings.betas,
            fused=self.processes.device.type == "cuda",
        )
        prepare_optimizer(self.optimizer)
        self.average = WeightAverage(task.model, settings.ema) if settings.ema is not None else None
        self.state = TrainingState(task.model, self.optimizer, self.average)
        self.loss_scale = LossScale(settings.precision == "fp16")
        self.writer = RunWriter(folder, self.processes, tensorboard=settings.tensorboard)
        self.distance: HeldOutDistance | None = None
        if settings.evaluate_every is not None:
            self.distance = HeldOutDistance(task, settings, self.processes)
        self.best: float | None = None
        self.start = 0

    def resume(self) -> None:
        """Load the newest checkpoint of the run folder, if there is one.

        Raises:
            RunStopped: the data is not what the run was trained on.
        """
        self.processes.run_on_rank0(self.folder.remove_leftovers)
        step = self.processes.run_on_rank0(self.folder.last_step)
        if step:
            with self.processes.raising_together():
                checkpoint = self.folder.checkpoint(step)
            self._check_data(checkpoint.progress)
            if self.settings.fsdp:
                self.state.load_shards(checkpoint.folder)
            with self.processes.raising_together():
                if not self.settings.fsdp:
                    self.state.load(checkpoint.folder)
                with damage_named(checkpoint.folder / "task.pt", "not of this run, or is damaged"):
                    self.task.load_state_dict(checkpoint.task)
            self.loss_scale.load_state_dict(checkpoint.progress["loss_scale"])
            self.best = checkpoint.progress["best"]
            self.start = step
        elif self.processes.run_on_rank0(self.folder.has_logged):
            logger.warning("%s was stopped before its first checkpoint; it starts again", self.folder.path)
        self.processes.run_on_rank0(lambda: self.folder.forget_after(step))

    def _check_data(self, progress: dict[str, Any]) -> None:
        count, fingerprint = progress["examples"], progress["fingerprint"]
        if (count, fingerprint) == (self.task.num_examples, self.task.fingerprint):
            if progress["stamps"] != self.task.stamps and self.processes.first:
                logger.warning(
                    "images that %s trains on were written again since; unless they are a copy, the run "
                    "goes on with other images",
                    self.folder.path,
                )
            return
        same = count == self.task.num_examples
        now = "as many with other content" if same else f"{self.task.num_examples:,}"
        self.processes.stop(
            RunStopped(
                f"the data of {self.folder.path} has changed: the run had {count:,} training examples, "
                f"now there are {now}; restore the data to continue, or start a new run from "
                f"{self.folder.path / 'best'}"
            )
        )

    def fit(self) -> dict[str, Any]:
        """Train to the last step and return the figures of the last validation.

        Steps are counted from 1 in metrics.jsonl and in the names of checkpoints.

        Raises:
            RunStopped: a signal, a lost process or a full disk ended the run; the message says how to resume.
            FloatingPointError: the loss or the gradients are no longer finite.
        """
        try:
            with StopSignals() as signals, self.writer:
                return self._fit(signals)
        except RuntimeError as error:
            if self.processes.alone or isinstance(error, RunStopped) or not lost_process(error):
                raise
            raise self.processes.stopped_by_loss(error) from error

    def _how_to_go_on(self) -> str:
        last = self.folder.last_step()
        go_on = f"the last checkpoint is step {last}, continue with --resume {self.folder.path}"
        return go_on if last else "there is no checkpoint yet, start again"

    def _fit(self, signals: StopSignals) -> dict[str, Any]:
        settings, saved = self.settings, self.start
        self.task.model.train()
        results, distance = self._catch_up(saved) if saved else ({}, {})
        for index in range(self.start, settings.steps):
            values, signal = self.step(index, signals)
            done = index + 1
            last = done == settings.steps

            def now(every: int | None) -> bool:
                # A signal may precede a kill by half a minute: save at once, the resumed run catches up.
                return every is not None and (last or (not signal and _due(done, every)))  # noqa: B023

            self.writer.log(values)
            if now(settings.validate_every):
                results = self.validate(done)
                values |= {name: value for name, value in results.items() if isinstance(value, float)}
                signal = first_signal(self.processes.total(received(signals)).tolist())
            if now(settings.evaluate_every):
                distance = self.evaluate(done)
                values |= distance
                signal = signal or first_signal(self.processes.total(received(signals)).tolist())
            if now(settings.sample_every):
                self.sample(done)
            if last or signal or _due(done, settings.save_every):
                self.save_checkpoint(done)
                saved = done
            self.report(values)
            if signal and not last:
                self.processes.stop(stopped_by(signal, saved, self.folder.path))
        results = {**(results or self._held_out_figures()), **distance}
        self.save_model("the final model", self.folder.model)
        self.task.model.eval()
        return results

    def _catch_up(self, step: int) -> tuple[dict[str, Any], dict[str, float]]:
        """Validate, evaluate and sample the checkpoint of `step`, where a signal left no time to."""
        results: dict[str, Any] = {}
        distance: dict[str, float] = {}
        settings, folder, run_on_rank0 = self.settings, self.folder, self.processes.run_on_rank0
        if _due(step, settings.validate_every):
            figure = run_on_rank0(lambda: folder.figure(step, self.task.best_figure))
            if figure is None:
                results = self.validate(step)
            elif self._is_best(figure):  # of a validation that was caught up before
                self.best = figure
        if _due(step, settings.evaluate_every) and run_on_rank0(lambda: folder.figure(step, "fd")) is None:
            distance = self.evaluate(step)
        if _due(step, settings.sample_every) and not run_on_rank0(lambda: folder.has_samples(step)):
            self.sample(step)
        return results, distance

    def step(self, index: int, signals: StopSignals | None = None) -> tuple[dict[str, Any], int]:
        """Take one optimizer step.

        Returns:
            The step's line of metrics.jsonl, and the signal that one of the processes received, or 0.
        """
        begun = time.perf_counter()
        settings = self.settings
        lr = settings.lr * self.task.learning_rate_factor(index, settings.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        loss, figures = self.gradients(index)
        norm = (global_norm(self.task.model) / self.loss_scale.factor).item()
        # Loss and signals travel in one message.
        shares = torch.cat([torch.tensor([loss], dtype=torch.float64, device="cpu"), received(signals)])
        loss, *counts = self.processes.total(shares).tolist()
        finite = self._check_finite(index + 1, loss, norm)
        if finite:
            self._scale_gradients(min(1.0, settings.clip / (norm + 1e-6)) / self.loss_scale.factor)
            self.optimizer.step()
            self.loss_scale.stepped()
            if self.average is not None:
                self.average.update(index + 1)
        else:
            self.loss_scale.overflowed()
        self.task.after_step(index)
        values = {"step": index + 1, "loss": loss, "lr": lr, "grad_norm": norm if finite else None, **figures}
        if self.loss_scale.enabled:
            values |= {"loss_scale": self.loss_scale.factor, "skipped_steps": self.loss_scale.skipped_steps}
        values["images_per_second"] = settings.batch_size / (time.perf_counter() - begun)
        memory = peak_memory_gb(self.processes.device)
        if memory is not None:
            values["memory_gb"] = memory
        return values, first_signal(counts)

    def gradients(self, index: int) -> tuple[float, dict[str, float]]:
        """Leave the gradients of the global batch's mean loss, times the loss scale, in `.grad`.

        Returns:
            This process's share of the loss, and figures to log.
        """
        settings, world_size = self.settings, self.processes.world_size
        dtype = PRECISIONS[settings.precision]
        self.optimizer.zero_grad(set_to_none=True)
        mine = self.parts[self.processes.rank * settings.accumulate :][: settings.accumulate]
        share = torch.zeros((), dtype=torch.float32, device="cpu")
        logged: list[dict[str, float]] = []
        with torch.autocast(self.processes.device.type, dtype=dtype, enabled=dtype is not None):
            self.task.begin_step(index, mine)
        for position, rows in enumerate(mine):
            weight = (rows.stop - rows.start) / settings.batch_size
            with self.parallel.accumulating(last=position == len(mine) - 1):
                with torch.autocast(self.processes.device.type, dtype=dtype, enabled=dtype is not None):
                    loss, figures = self.task.loss(index, rows)
                # DDP and FSDP average over processes; the weights of all parts already add up to one.
                (loss * (weight * world_size * self.loss_scale.factor)).backward()
            share = share.to(loss.device) + loss.detach() * weight
            logged.append(figures)
        return share.item(), _averaged(logged, [rows.stop - rows.start for rows in mine])

    def _scale_gradients(self, factor: float) -> None:
        if factor != 1.0:
            for parameter in self.task.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)

    def _check_finite(self, step: int, loss: float, norm: float) -> bool:
        """Return False where fp16 gradients overflowed and the step is to be skipped."""
        if math.isfinite(loss) and math.isfinite(norm):
            return True
        if math.isfinite(loss) and self.loss_scale.enabled:
            return False
        name, value = ("gradient norm", norm) if math.isfinite(loss) else ("loss", loss)
        self.processes.stop(
            FloatingPointError(
                f"the {name} of step {step} is {value}; {self.folder.intact()}: lower the learning rate, or "
                "use bf16 or fp32, in a new run"
            )
        )

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Evaluation mode without gradients, on the averaged weights where there are any."""
        self.task.model.eval()
        averaged = nullcontext() if self.average is None else self.average.applied()
        with torch.no_grad(), averaged:
            yield
            self.parallel.reshard()
        self.task.model.train()

    def _held_out_figures(self) -> dict[str, Any]:
        with self._evaluating():
            return self.task.validate()

    def validate(self, step: int) -> dict[str, Any]:
        """Return and log figures on the held-out examples, and save the model if it is the best so far."""
        results = self._held_out_figures()
        figure = results.get(self.task.best_figure)
        if figure is not None and self._is_best(figure):
            self.best = figure
            self.save_model("the best model", self.folder.best)
        # Last, since a resumed run takes what is logged for done.
        self.writer.log({"step": step, **results})
        return results

    def _is_best(self, figure: float) -> bool:
        if not math.isfinite(figure):
            return False
        return self.best is None or (figure > self.best if self.task.higher_is_better else figure < self.best)

    def evaluate(self, step: int) -> dict[str, float]:
        """Return and log the Frechet distance of the model's images to held-out ones."""
        assert self.distance is not None, "settings.evaluate_every is not set"
        with self._evaluating():
            figures = self.distance.measure(self.parallel.plain_model())
        self.writer.log({"step": step, **figures})
        return figures

    def sample(self, step: int) -> None:
        """Generate samples on rank 0 and write them."""
        image: Image.Image | None = None
        with self._evaluating():
            model = self.parallel.plain_model()
            with self.processes.raising_together():
                if self.processes.first:
                    image = self._sampled(model, step)
        self.writer.samples(step, image)

    def _sampled(self, model: Any, step: int) -> Image.Image | None:
        try:
            return self.task.sample(model.to(self.processes.device))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            logger.warning(
                "no samples of step %d: there is no memory for them beside the optimizer's state", step
            )
            return None

    def save_model(self, what: str, target: Path) -> None:
        """Write a model folder, of the averaged weights where there are any."""
        with self._evaluating():
            model = self.parallel.plain_model()
            self.writer.model(what, target, lambda folder: self.task.save(folder, model))

    def save_checkpoint(self, step: int) -> None:
        """Write everything that resuming after `step` needs."""
        progress = {
            "step": step,
            "loss_scale": self.loss_scale.state_dict(),
            "best": self.best,
            "examples": self.task.num_examples,
            "fingerprint": self.task.fingerprint,
            "stamps": self.task.stamps,
        }
        sharded = self.settings.fsdp
        self.writer.checkpoint(
            self.state.save_shards if sharded else self.state.save,
            progress,
            self.task.state_dict(),
            everywhere=sharded,
            keep=self.settings.keep,
        )


def _due(step: int, every: int | None) -> bool:
    return every is not None and every > 0 and step % every == 0


def _averaged(figures: list[dict[str, float]], sizes: list[int]) -> dict[str, float]:
    """Return figures of micro-batches as those of their whole."""
    columns = {name: [each[name] for each in figures] for name in figures[0]}
    return {
        name: values[0]
        if len(set(values)) == 1
        else sum(value * size for value, size in zip(values, sizes)) / sum(sizes)
        for name, values in columns.items()
    }
