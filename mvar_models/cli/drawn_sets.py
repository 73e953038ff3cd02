"""What `mvar evaluate` evaluates: images that are there, their reconstructions, and what models draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from mvar_models.cli.common import count_progress
from mvar_models.cli.drawing_options import filled
from mvar_models.distributed import Processes
from mvar_models.evaluation.image_sets import ImageSet, open_set
from mvar_models.evaluation.npz import write_npz
from mvar_models.evaluation.reconstruction import Reconstructions
from mvar_models.files import file_names
from mvar_models.networks.vqvae import VQVAE
from mvar_models.pipeline import Pipeline, pipeline_for


@dataclass(frozen=True)
class DrawnSet:
    """A row of the table.

    Attributes:
        images: The images.
        folder: Name of its folder where there are several sets; no two have the same.
        pipeline: What drew them, for its likelihood; None for images that were there.
    """

    images: ImageSet
    folder: str
    pipeline: Pipeline | None = None


def drawn_sets(
    places: Sequence[str],
    *,
    models: Sequence[str],
    per_class: int | None,
    seed: int,
    reconstruct: str | None,
    resolution: int | None,
    out: Path,
    processes: Processes,
    **options: Any,
) -> list[DrawnSet]:
    """Open or draw all sets; models draw into `out`, and continue where they were stopped.

    Args:
        places: Images that are there.
        models: Zoo names, folders, files or Hub ids.
        per_class: Images that each model draws of every class.
        seed: Seed of the first image of each model.
        reconstruct: Name of a VQVAE, whose reconstructions of all `places` are sets too.
        resolution: Side of the images of datasets; default: that of the models or of the VQVAE.
        out: Folder for drawn images.
        processes: Those that draw together.
        **options: guidance_scale, guidance_schedule, top_k and top_p; None is the checkpoint's own.

    Raises:
        click.UsageError: options that do not go together.
    """
    if bool(models) != (per_class is not None):
        raise click.UsageError("--model and --per-class go together")
    if reconstruct is not None and not places:
        raise click.UsageError("--reconstruct needs DRAWN images to reconstruct")
    device = str(processes.device)
    # All is opened and named before anything is drawn, which may take hours.
    reconstructed = [f"{_stem(place)}-reconstructed" for place in places if reconstruct is not None]
    names = file_names([*map(_stem, [*places, *models]), *reconstructed])
    pipelines = [
        processes.first_then_others(lambda name=name: pipeline_for(name, device=device))  # type: ignore[misc]
        for name in models
    ]
    vqvae = None if reconstruct is None else VQVAE.from_pretrained(reconstruct, device=device)
    networks = [each for each in (vqvae, *(pipeline.vqvae for pipeline in pipelines)) if each is not None]
    side = resolution
    if side is None and networks:
        side = networks[0].config.resolution
    found = []
    for index, place in enumerate(places):
        images = open_set(place, resolution=side)
        found.append(DrawnSet(images, names[index]))
        if vqvae is not None:
            through = Reconstructions(images, vqvae, f"{place} through {reconstruct}")
            found.append(DrawnSet(through, names[len(places) + len(models) + index]))
    for model, name, pipeline in zip(models, names[len(places) :], pipelines):
        file = out / f"{name}.npz"
        _draw(pipeline, file, model, per_class or 0, seed, processes, options)
        drawn = open_set(file)
        drawn.name = model
        found.append(DrawnSet(drawn, name, pipeline))
    return found


def _draw(
    pipeline: Pipeline,
    file: Path,
    name: str,
    per_class: int,
    seed: int,
    processes: Processes,
    options: dict[str, Any],
) -> None:
    """Draw this process's parts of the file, and wait for the others'."""
    config = pipeline.model.config
    given = filled(options, config)
    file.parent.mkdir(parents=True, exist_ok=True)
    settings = {"per_class": per_class, "seed": seed, "checkpoint": {"model": name}, **given}
    with processes.raising_together(), count_progress("batch", shown=processes.first) as report:
        write_npz(
            pipeline, file, rank=processes.rank, world_size=processes.world_size, report=report, **settings
        )
    # All parts are there now, if not yet joined.
    processes.run_on_rank0(lambda: write_npz(pipeline, file, **settings))


def _stem(place: str) -> str:
    return place.removesuffix(".npz")
