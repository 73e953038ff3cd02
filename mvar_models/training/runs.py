"""From settings to a trained model in a run folder: what the command line and the demo call."""

from __future__ import annotations

import logging
import math
import sys
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mvar_models.data.open import DIGITS, check_data_exists, open_images
from mvar_models.data.source import ImageSource
from mvar_models.devices import checked_device
from mvar_models.environment import environment
from mvar_models.evaluation.reconstruction import check_reconstruction
from mvar_models.files import OtherSettings
from mvar_models.networks.vqvae import VQVAE
from mvar_models.pipeline import fitted, vqvae_of
from mvar_models.tokens import folder as token_folder
from mvar_models.tokens.encode import same_codes, tokenize_split
from mvar_models.tokens.token_set import TokenSet
from mvar_models.tokens.writer import TokenWriter
from mvar_models.training.build import (
    build_transformer,
    build_vqvae,
    check_codes,
    load_initial,
    new_vqvae_config,
    released_vqvae_shape,
)
from mvar_models.training.loop import Loop, Report
from mvar_models.training.parallel import pieces
from mvar_models.training.processes import Processes
from mvar_models.training.run_folder import RunFolder
from mvar_models.training.settings import RunSettings, TransformerSettings, VQVAESettings
from mvar_models.training.transformer_task import TransformerTask
from mvar_models.training.vqvae_task import VQVAETask

logger = logging.getLogger(__name__)

_DIGITS_VQVAE, _DEFAULT_VQVAE = "vae-digits", "vae-ch160v4096z32"


@dataclass(frozen=True)
class Run:
    settings: RunSettings
    folder: RunFolder
    processes: Processes


def start_transformer_run(
    *, resume: str | None = None, epochs: float | None = None, device: str = "cpu", **given: Any
) -> Run:
    """A new run of VAR or MVAR from the given settings, or the one in `resume`. Peak lr defaults to 1e-4 x batch / 256.

    Under torchrun every process calls it, and the first one makes the folder.
    """
    if resume is not None:
        return _resumed(resume, TransformerSettings, device)
    check_data_exists(given["data"])
    checked_device(device)
    init = given.get("init")
    own = None if init is None else vqvae_of(init)
    given.setdefault("vqvae", default_vqvae(given["data"], own))
    given.setdefault("lr", 1e-4 * given.get("batch_size", TransformerSettings.batch_size) / 256)
    if epochs is not None:
        resolution = VQVAE.from_pretrained(given["vqvae"]).config.resolution
        given["steps"] = _steps(
            epochs,
            len(token_folder.open_data(given["data"], resolution).train),
            given.get("batch_size", TransformerSettings.batch_size),
        )
    run = _created(TransformerSettings(device=device, **given))
    if own is not None and not _gives_the_codes_of(own, run.settings.vqvae):
        logger.warning(
            "%s was trained on codes of %s; it has to learn those of %s", init, own, run.settings.vqvae
        )
    return run


def _gives_the_codes_of(own: str, vqvae: str) -> bool:
    """Whether two names, folders or files are the same VQVAE; its pyramid may differ."""
    if Path(own).resolve() == Path(vqvae).resolve():
        return True
    try:
        original = VQVAE.from_pretrained(own)
    except (OSError, ValueError):  # It is only needed for a warning.
        return False
    given = VQVAE.from_pretrained(vqvae)
    return same_codes(fitted(original, given.config.sides), given)


def start_vqvae_run(
    *,
    resume: str | None = None,
    epochs: float | None = None,
    device: str = "cpu",
    resolution: int | None = None,
    **given: Any,
) -> Run:
    """A new run of a VQVAE from the given settings, or the one in `resume`. `resolution`: the released shape for pictures of that side."""
    if resume is not None:
        return _resumed(resume, VQVAESettings, device)
    token_folder.refuse_tokens(given["data"])
    check_data_exists(given["data"])
    checked_device(device)
    if resolution is not None:
        given = {**released_vqvae_shape(resolution), **given}
    given.setdefault("lr", 1e-3)
    given.setdefault("weight_decay", 0.0)
    if epochs is not None:
        given["steps"] = _steps(
            epochs,
            len(open_images(given["data"], 32).train),
            given.get("batch_size", VQVAESettings.batch_size),
        )
    return _created(VQVAESettings(device=device, **given))


def describe_vqvae(settings: VQVAESettings) -> str:
    """One line: what is going to be trained."""
    if settings.init is not None:
        return f"going on with {settings.init}"
    shape = new_vqvae_config(settings)
    return f"a new VQVAE for pictures of {shape.resolution} px: {len(shape.sides)} scales, {shape.length} codes of {shape.vocab_size}"


def _created(settings: RunSettings) -> Run:
    processes = Processes.from_environment(settings.device).connect(always=settings.fsdp)
    pieces(
        settings.batch_size, processes.world_size * settings.accumulate
    )  # refused before there is a folder
    folder = processes.on_first(lambda: RunFolder.create(settings))
    return Run(replace(settings, device=str(processes.device)), folder, processes)


def _resumed(path: str, kind: type[RunSettings], device: str) -> Run:
    folder = RunFolder(path)
    settings = folder.read_settings()
    checked_device(device)
    if not isinstance(settings, kind):
        raise ValueError(f"{path} is a {settings.kind} run, this command trains a {kind.kind}")
    processes = Processes.from_environment(device).connect(always=settings.fsdp)
    return Run(replace(settings, device=str(processes.device)), folder, processes)


def _steps(epochs: float, num_examples: int, batch_size: int) -> int:
    return max(1, math.ceil(epochs * num_examples / batch_size))


def default_vqvae(data: str, own: str | None = None) -> str:
    """For a folder of codes the VQVAE that made them, else `own`, that of the checkpoint, else the zoo's for pictures of that kind."""
    if token_folder.is_token_folder(Path(data)):
        return token_folder.read_index(Path(data))["vqvae"]
    if own is not None:
        return own
    return _DIGITS_VQVAE if data == DIGITS else _DEFAULT_VQVAE


def _codes_of_images(run: Run, vqvae: VQVAE, source: ImageSource) -> tuple[TokenSet, TokenSet]:
    """Encode the images into the run folder, by all processes together, where a resumed run finds them.

    The digits take seconds and stay in memory.
    """
    settings, processes = run.settings, run.processes
    assert isinstance(settings, TransformerSettings)
    if settings.data == DIGITS:
        return processes.first_then_others(
            lambda: tokenize_split(vqvae, source, settings.copies, settings.seed)
        )
    folder = run.folder.path / "tokens"

    def writer() -> TokenWriter:
        return TokenWriter(
            vqvae,
            source,
            folder,
            names=(settings.data, settings.vqvae),
            num_variants=settings.copies,
            seed=settings.seed,
        )

    def begin() -> None:
        try:
            first = writer()
        except OtherSettings as error:
            raise ValueError(
                f"what {run.folder.path} trains on has changed since it began ({', '.join(error.changed)}); put it back to go on, "
                f"or start a new run from {run.folder.path / 'best'}"
            ) from None
        if first.finished:
            return
        drawn = folder / "reconstruction.png"
        found = check_reconstruction(vqvae, source, drawn)
        if not found.fits:
            logger.warning(
                "%s reconstructs these images with only %.1f dB PSNR; look at %s",
                settings.vqvae,
                found.psnr,
                drawn,
            )

    processes.on_first(begin)
    problem: Exception | None = None
    try:
        writer().write(rank=processes.rank, world_size=processes.world_size)
    except (OSError, ValueError, SafetensorError) as error:
        problem = error
    processes.all_well(problem)
    if processes.on_first(lambda: not (folder / token_folder.INDEX).exists()):
        # Two that ended together may each have missed the other's last file, on a network disk.
        processes.on_first(lambda: writer().write().complete)
    made = token_folder.TokenFolder(folder)
    if made.skipped:  # by whichever process and start
        logger.warning(
            "%d skipped, %d images used; all are listed in %s",
            len(made.skipped),
            len(made),
            folder / token_folder.INDEX,
        )
    return made.token_sets(vqvae)


def train_transformer(
    run: Run, report: Report | None = None, tokens: tuple[TokenSet, TokenSet] | None = None
) -> dict[str, Any]:
    """Train to the end of the run; returns the last validation. `tokens` saves making the codes again."""
    settings = run.settings
    assert isinstance(settings, TransformerSettings)
    vqvae = VQVAE.from_pretrained(settings.vqvae, device=settings.device)
    checkpoint = load_initial(settings)
    if checkpoint is not None:
        vqvae = fitted(vqvae, checkpoint.config.sides)
        check_codes(checkpoint, vqvae, settings)  # before hours of coding
    elif token_folder.is_token_folder(Path(settings.data)):
        vqvae = fitted(vqvae, token_folder.read_index(Path(settings.data))["sides"])
    data: ImageSource | token_folder.TokenFolder
    if token_folder.is_token_folder(Path(settings.data)):
        data = folder = token_folder.TokenFolder(Path(settings.data))
        train, val = tokens or run.processes.first_then_others(
            lambda: folder.token_sets(vqvae, settings.copies)
        )
    else:
        data = source = open_images(settings.data, vqvae.config.resolution)
        train, val = tokens or _codes_of_images(run, vqvae, source)
    resuming = run.folder.last_step() > 0
    task = TransformerTask(
        build_transformer(settings, vqvae, data.class_names, resuming, checkpoint),
        vqvae,
        train,
        val,
        settings,
    )
    logger.info("%d pictures to train on, %d held out", len(train), len(val))
    return _fit(task, run, report)


def train_vqvae(run: Run, report: Report | None = None) -> dict[str, Any]:
    """Train to the end of the run; returns the last validation."""
    settings = run.settings
    assert isinstance(settings, VQVAESettings)
    model = build_vqvae(settings)
    source = open_images(settings.data, model.config.resolution)
    return _fit(VQVAETask(model, source, source.train, source.held_out, settings), run, report)


def _fit(task: TransformerTask | VQVAETask, run: Run, report: Report | None) -> dict[str, Any]:
    loop = Loop(task, run.settings, run.folder, report, run.processes)
    loop.resume()
    run.processes.on_first(lambda: run.folder.add_start(_start(run, loop.start)))
    results = loop.fit()
    run.processes.close()
    return results


def _start(run: Run, step: int) -> dict[str, Any]:
    return {
        "step": step,
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": sys.argv,
        "processes": run.processes.world_size,
        "device": run.settings.device,
        **environment(),
    }
