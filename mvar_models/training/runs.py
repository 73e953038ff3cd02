"""From settings to a trained model in a run folder: what the command line and the demo call.

A run is started (or resumed) and then trained::

    run = start_transformer_run(data="digits", out="runs/mvar", init="var-digits", kernel_size=3, steps=700)
    figures = train_transformer(run)

Under torchrun every process makes the same calls.
"""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import torch

from mvar_models.checkpoints.checkpoint import Checkpoint, open_checkpoint
from mvar_models.data.open import open_images
from mvar_models.data.source import ImageSource
from mvar_models.devices import usual_defaults
from mvar_models.distributed import COLLECTIVE_TIMEOUT, Processes
from mvar_models.environment import environment, versions
from mvar_models.evaluation.reconstruction import check_reconstruction
from mvar_models.networks.scorer import Scorer, ScorerConfig
from mvar_models.networks.vqvae import VQVAE
from mvar_models.optional import require
from mvar_models.pipeline import fitted, pipeline_for
from mvar_models.records import Must, record_of
from mvar_models.tokens.folder import TokenFolder, open_data, refuse_tokens
from mvar_models.training.build import (
    build_transformer,
    build_vqvae,
    default_vqvae,
    load_initial,
    resolved,
    same_vqvae,
    vqvae_shape,
)
from mvar_models.training.held_out_distance import resolve_features
from mvar_models.training.loop import Loop, StepReport
from mvar_models.training.parallel import cannot_shard, pieces
from mvar_models.training.run_folder import RunFolder
from mvar_models.training.scorer_task import ScorerTask, check_scorable, sampled_codes
from mvar_models.training.settings import (
    RunSettings,
    ScorerSettings,
    TransformerSettings,
    VQVAESettings,
)
from mvar_models.training.task import Task
from mvar_models.training.transformer_task import TokenSets, TransformerTask, open_tokens
from mvar_models.training.vqvae_losses import PERCEPTUAL
from mvar_models.training.vqvae_task import VQVAETask

logger = logging.getLogger(__name__)

_Epochs: Any = Annotated[float, Must("above 0", lambda value: value > 0)]

S = TypeVar("S", bound=RunSettings)


@dataclass(frozen=True)
class Run(Generic[S]):
    """A run that is ready to be trained.

    Attributes:
        settings: Its settings, with the device of this process.
        folder: Its folder.
        processes: The processes that take part.
        data: The images or codes of `settings.data`, opened.
        initial: What it starts from, opened; None from scratch, and for a run that is continued.
    """

    settings: S
    folder: RunFolder
    processes: Processes
    data: ImageSource | TokenFolder
    initial: Checkpoint | None = None


def start_transformer_run(
    *,
    resume: str | os.PathLike[str] | None = None,
    epochs: float | None = None,
    device: torch.device | str | int | None = "cpu",
    collective_timeout: float = COLLECTIVE_TIMEOUT,
    **given: Any,
) -> Run[TransformerSettings]:
    """Create a run of VAR or MVAR, or open one to continue it.

    Args:
        resume: Run folder to continue; the run has its own settings, so nothing but `device`,
            `collective_timeout` and `steps`, which may grow, may be given.
        epochs: Passes over the training images, instead of `steps`.
        device: Where to train; None is a GPU where there is one.
        collective_timeout: Seconds without a sign of another process of the run after which this one ends.
        **given: Fields of `TransformerSettings`. By default the peak learning rate is 1e-4 x batch_size /
            256, and the VQVAE is that of `init` or of the data.

    Raises:
        FileExistsError: `out` already holds a run.
        FileNotFoundError: there is no such data, or no run to resume.
        TypeError: a setting is unknown, missing or of another type.
        ValueError: a setting is wrong, or not that of another process.
    """
    processes = Processes.from_environment(device).connect(timeout=collective_timeout)
    if resume is not None:
        return _resume(resume, TransformerSettings, processes, open_data, epochs=epochs, **given)
    with processes.raising_together():
        settings = TransformerSettings(device=str(processes.device if device is None else device), **given)
        data = open_data(settings.data)
        initial = None if settings.init is None else open_checkpoint(settings.init)
        own = None if initial is None else initial.vqvae_name
        defaults: dict[str, Any] = {"lr": 1e-4 * settings.batch_size / 256}
        of_codes = data.index.vqvae if isinstance(data, TokenFolder) else None
        defaults["vqvae"] = of_codes or own or default_vqvae(settings.data)
        if epochs is not None:
            defaults["steps"] = _steps(epochs, settings, given, data)
        settings = replace(settings, **{**defaults, **given})
    processes.require_same(_facts(settings, processes))
    with processes.raising_together():
        settings, vqvae = resolved(settings, data, initial)
    run = replace(_create(settings, processes, data, vqvae), initial=initial)
    with processes.raising_together():
        same = own is None or same_vqvae(own, run.settings.vqvae)
    if not same:
        names = settings.init, own, run.settings.vqvae
        logger.warning("%s was trained on codes of %s; it has to learn those of %s", *names)
    return run


def start_vqvae_run(
    *,
    resume: str | os.PathLike[str] | None = None,
    epochs: float | None = None,
    device: torch.device | str | int | None = "cpu",
    collective_timeout: float = COLLECTIVE_TIMEOUT,
    resolution: int | None = None,
    **given: Any,
) -> Run[VQVAESettings]:
    """Create a run of a VQVAE, or open one to continue it; as `start_transformer_run`, except for:

    Args:
        resolution: 32, 64 or 128 for a small VQVAE, 256, 512 or 1024 for the released one at that resolution.
        **given: Fields of `VQVAESettings`. By default the peak learning rate is 1e-3, without weight decay.
            The data may not be a folder of codes.
    """
    processes = Processes.from_environment(device).connect(timeout=collective_timeout)
    if resume is not None:
        given = {"epochs": epochs, "resolution": resolution, **given}
        return _resume(resume, VQVAESettings, processes, _open_pixels, **given)
    with processes.raising_together():
        shape = {} if resolution is None else vqvae_shape(resolution)
        given = {"lr": 1e-3, "weight_decay": 0.0, **shape, **given}
        settings = VQVAESettings(device=str(processes.device if device is None else device), **given)
        data = _open_pixels(settings.data)
        if epochs is not None:
            settings = replace(settings, steps=_steps(epochs, settings, given, data))
    processes.require_same(_facts(settings, processes))
    with processes.raising_together():
        if settings.init is not None:
            VQVAE.from_pretrained(settings.init)  # what is wrong with it is said before a folder is made
        if settings.perceptual:
            PERCEPTUAL[settings.perceptual_network]()  # so is what it lacks: an extra, or the download
    return _create(settings, processes, data)


def start_scorer_run(
    *,
    resume: str | os.PathLike[str] | None = None,
    epochs: float | None = None,
    device: torch.device | str | int | None = "cpu",
    collective_timeout: float = COLLECTIVE_TIMEOUT,
    **given: Any,
) -> Run[ScorerSettings]:
    """Create a run of a scorer, or open one to continue it; as `start_transformer_run`, except for:

    Args:
        **given: Fields of `ScorerSettings`. By default the peak learning rate is 3e-4, without weight decay.
    """
    processes = Processes.from_environment(device).connect(timeout=collective_timeout)
    if resume is not None:
        return _resume(resume, ScorerSettings, processes, open_data, epochs=epochs, **given)
    with processes.raising_together():
        if not processes.alone:
            raise ValueError("a scorer trains in one process; start it without torchrun")
        given = {"lr": 3e-4, "weight_decay": 0.0, **given}
        settings = ScorerSettings(device=str(processes.device if device is None else device), **given)
        data = open_data(settings.data)
        own = open_checkpoint(settings.model).vqvae_name or default_vqvae(settings.data)
        settings = replace(settings, vqvae=settings.vqvae or own)
        vqvae = VQVAE.from_pretrained(settings.vqvae)
        if epochs is not None:
            settings = replace(settings, steps=_steps(epochs, settings, given, data))
    return _create(settings, processes, data, vqvae)


def train_transformer(
    run: Run[TransformerSettings], report: StepReport | None = None, tokens: TokenSets | None = None
) -> dict[str, Any]:
    """Train to the end of the run and return the figures of the last validation.

    Args:
        run: The run.
        report: Called on rank 0 with the figures of each step.
        tokens: Codes of the training and held-out images, where they are at hand.
    """
    with _held(run):
        return _fit(_transformer_task(run, tokens), run, report)


def train_vqvae(run: Run[VQVAESettings], report: StepReport | None = None) -> dict[str, Any]:
    """Train to the end of the run and return the figures of the last validation; see `train_transformer`."""
    with _held(run):
        with run.processes.raising_together():
            assert isinstance(run.data, ImageSource), "start_vqvae_run refuses codes"
            model = build_vqvae(run.settings)
            source = run.data.at(model.config.resolution)
            task = VQVAETask(model, source, source.train, source.held_out, run.settings)
        return _fit(task, run, report)


def train_scorer(run: Run[ScorerSettings], report: StepReport | None = None) -> dict[str, Any]:
    """Train to the end of the run and return the figures of the last validation; see `train_transformer`."""
    settings, data = run.settings, run.data
    with _held(run):
        pipeline = pipeline_for(settings.model, device=settings.device)
        config = pipeline.model.config
        shape = ScorerConfig(
            num_classes=config.num_classes, z_channels=config.z_channels, sides=config.sides,
            width=settings.width,
        )  # fmt: skip
        if isinstance(data, ImageSource):
            data = data.at(pipeline.vqvae.config.resolution)
        check_scorable(pipeline, tuple(data.class_names))
        train, val = open_tokens(settings, run.folder, run.processes, pipeline.vqvae, data)
        sampled = sampled_codes(pipeline, settings.per_class, settings.seed, run.folder.path / "sampled.npy")
        torch.manual_seed(settings.seed)
        scorer = Scorer(shape).to(settings.device)
        task = ScorerTask(scorer, pipeline.vqvae.quantizer, train, val, sampled, settings)
        return _fit(task, run, report)


def _transformer_task(run: Run[TransformerSettings], tokens: TokenSets | None) -> TransformerTask:
    settings, data = run.settings, run.data
    with run.processes.raising_together():  # whatever does not fit is refused before hours of encoding
        vqvae = VQVAE.from_pretrained(settings.vqvae, device=settings.device)
        initial = load_initial(settings, run.initial)
        if initial is not None:
            vqvae = fitted(vqvae, initial.config.sides)
        elif isinstance(data, TokenFolder):
            vqvae = fitted(vqvae, data.index.sides)
        if isinstance(data, ImageSource):
            data = data.at(vqvae.config.resolution)
        resuming = run.folder.last_step() > 0
        model = build_transformer(settings, vqvae, data.class_names, resuming, initial)
    train, val = tokens or open_tokens(settings, run.folder, run.processes, vqvae, data)
    with run.processes.raising_together():
        logger.info("%d images to train on, %d held out", len(train), len(val))
        source = data if isinstance(data, ImageSource) else None
        return TransformerTask(model.to(settings.device), vqvae, train, val, settings, source)


def _create(
    settings: S, processes: Processes, data: ImageSource | TokenFolder, vqvae: VQVAE | None = None
) -> Run[S]:
    """Create the folder of a run, where `vqvae`, if there is one, reconstructs the images well enough."""
    processes.require_same(_facts(settings, processes))
    parts = processes.world_size * settings.accumulate

    def check() -> None:  # before anything is written
        if settings.tensorboard:
            require("tensorboard", "tensorboard")
        pieces(settings.batch_size, parts)
        if settings.fsdp and (reason := cannot_shard(processes.device)):
            raise ValueError(reason)

    processes.run_on_rank0(check)
    processes.connect(always=settings.fsdp)
    settings = resolve_features(settings, processes)
    processes.require_shared(settings.out)

    def create() -> RunFolder:
        if vqvae is None or isinstance(data, TokenFolder):
            return RunFolder.create(settings)
        assert isinstance(settings, TransformerSettings | ScorerSettings)
        network, file = vqvae.to(processes.device), Path(settings.out) / "reconstruction.png"
        images, accept = data.at(network.config.resolution), settings.accept_psnr
        found = check_reconstruction(network, images, file, name=settings.vqvae, accept=accept)
        folder = RunFolder.create(settings)
        found.save(file)
        return folder

    folder = processes.run_on_rank0(create)
    return Run(replace(settings, device=str(processes.device)), folder, processes, data)


def _resume(
    run_folder: str | os.PathLike[str],
    kind: type[S],
    processes: Processes,
    opened: Callable[[str], ImageSource | TokenFolder],
    steps: int | None = None,
    **given: Any,
) -> Run[S]:
    with processes.raising_together():
        others = ", ".join(name for name, value in given.items() if value is not None)
        if others:
            raise ValueError(f"resume continues a run with its own settings; leave out {others}")
        path = record_of(run_folder, str, "resume")
        folder = RunFolder(path)
        settings = folder.read_settings()
        if not isinstance(settings, kind):
            raise ValueError(f"{path} is a {settings.kind} run, this command trains a {kind.kind}")
    if steps is not None:
        processes.run_on_rank0(lambda: folder.extend(steps))
        settings = replace(settings, steps=steps)
    processes.require_same(_facts(settings, processes))
    processes.require_shared(path)
    processes.connect(always=settings.fsdp)
    with processes.raising_together():
        data = opened(settings.data)
    run = Run(replace(settings, device=str(processes.device)), folder, processes, data)
    with _held(run):
        return run


def _open_pixels(data: str) -> ImageSource:
    refuse_tokens(data)
    return open_images(data)


@contextmanager
def _held(run: Run[Any]) -> Iterator[None]:
    """Keep other processes out of the run folder while the block runs; rank 0 holds it for all.

    torch's defaults are the usual ones inside.

    Raises:
        FolderInUse: another holds it.
        ValueError: another start gave the folder other settings since this run was created.
    """
    with ExitStack() as stack:
        stack.enter_context(usual_defaults())
        run.processes.run_on_rank0(lambda: stack.enter_context(run.folder.held()))
        if not run.processes.run_on_rank0(lambda: run.folder.has_settings(run.settings)):
            run.processes.stop(
                ValueError(f"{run.folder.path} has other settings by now; choose another --out")
            )
        yield


def _facts(settings: RunSettings, processes: Processes) -> dict[str, Any]:
    """Return what must be the same in all processes before the data is opened."""
    # Devices are numbered per host.
    return {**settings.to_dict(), **versions(), "device": processes.device.type}


def _steps(
    epochs: float, settings: RunSettings, given: Mapping[str, Any], data: ImageSource | TokenFolder
) -> int:
    """Return the steps of so many passes over the training images."""
    if "steps" in given:
        raise ValueError("give one of steps and epochs, got both")
    passes = record_of(epochs, _Epochs, "epochs")
    return max(1, math.ceil(passes * len(data.train) / settings.batch_size))


def _fit(task: Task, run: Run[Any], report: StepReport | None) -> dict[str, Any]:
    loop = Loop(task, run.settings, run.folder, report, run.processes)
    loop.resume()
    run.processes.run_on_rank0(lambda: run.folder.add_start(_start_record(run, loop.start)))
    try:
        results = loop.fit()
    except Exception:
        run.processes.leave()  # a program that catches this goes on, and may not be ended for a lost run
        raise
    run.processes.close()
    return results


def _start_record(run: Run[Any], step: int) -> dict[str, Any]:
    return {
        "step": step,
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": sys.argv,
        "processes": run.processes.world_size,
        "device": run.settings.device,
        **environment(),
    }
