"""The command `mvar sweep`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mvar_models.checkpoints.locate import FORMS
from mvar_models.cli.common import CommaList, require_same_options, settings_options
from mvar_models.cli.drawing_options import seed_option
from mvar_models.cli.evaluate import feature_options
from mvar_models.distributed import Processes
from mvar_models.evaluation.comparison import METRICS
from mvar_models.evaluation.evaluator import Reference, evaluate, prepare_reference
from mvar_models.evaluation.features.network import feature_network
from mvar_models.evaluation.sweep import (
    Cell,
    draw_heat_map,
    others_in_words,
    preset_grid,
    pyplot,
    read_cells,
    sweep,
    write_summary,
)
from mvar_models.pipeline import pipeline_for
from mvar_models.sampling.progress import say
from mvar_models.sampling.settings import SamplingSettings


@click.command("sweep")
@click.option("--model", required=True, help=f"Model: {FORMS}.")
@click.option(
    "--reference", required=True, help='What to compare with, as for `mvar evaluate`: "digits@train".'
)
@click.option(
    "--metric",
    type=click.Choice(list(METRICS)),
    default="fd",
    show_default=True,
    help="The figure that decides.",
)
@click.option(
    "--guidance-scale",
    type=CommaList(float),
    default="0,0.5,1,1.5,2,3,4",
    help="Values, with commas between.",
)
@settings_options(SamplingSettings, without=("guidance_scale", "top_k", "top_p"))
@click.option("--top-k", type=CommaList(int), default=None, help="Values. Default: the checkpoint's.")
@click.option("--top-p", type=CommaList(float), default=None, help="Values. Default: the checkpoint's.")
@feature_options
@click.option("--per-class", type=click.IntRange(min=1), default=10, help="Images of every class and preset.")
@seed_option("Image i takes seed + i, under every preset.")
@click.option("--arch", default=None, help="Architecture of a released .pth that does not say which it is.")
@click.option("--vqvae", default=None, help=f"VQVAE: {FORMS}. Default: the checkpoint's own.")
@click.option("--device", default=None, help="Default: cuda if available, else cpu.")
@click.option("--batch-size", default=32, type=click.IntRange(min=1), help="Images at a time.")
@click.option(
    "--out",
    "-o",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder to create or to continue.",
)
def sweep_command(
    model: str,
    reference: str,
    metric: str,
    guidance_scale: tuple[float, ...],
    top_k: tuple[int, ...] | None,
    top_p: tuple[float, ...] | None,
    features: str,
    weights: str | None,
    per_class: int,
    seed: int,
    arch: str | None,
    vqvae: str | None,
    device: str | None,
    batch_size: int,
    out: Path,
    **other_settings: Any,
) -> None:
    """Find the best guidance scale, top-k and top-p of a model by drawing with every combination.

    Writes heat_map.png, sweep.json with all figures, and preset.json with the best preset, which
    `mvar sample --preset` takes. A stopped sweep continues, and a finished one takes further values. Under
    torchrun the processes share the work; the figures are the same.
    """
    pyplot()  # its absence should be known before hours of sampling
    processes = Processes.from_environment(device).connect()
    try:
        require_same_options(processes)
        processes.require_shared(out)
        place = str(processes.device)
        network = processes.first_then_others(
            lambda: feature_network(features, device=place, weights=weights)
        )
        pipeline = processes.first_then_others(
            lambda: pipeline_for(model, arch=arch, vqvae=vqvae, device=place)
        )
        config = pipeline.model.config
        others = SamplingSettings.of(config, **other_settings)
        presets = preset_grid(guidance_scale, top_k or (config.top_k,), top_p or (config.top_p,), others)
        total = config.num_classes * per_class
        with processes.raising_together():
            # Each process judges presets of its own, so each prepares the reference alone.
            prepared = prepare_reference(
                reference, network, metrics=[metric], resolution=pipeline.vqvae.config.resolution,
                batch_size=batch_size,
            )  # fmt: skip
            if processes.first:
                click.echo(f"{len(presets)} presets, {total:,} images each, by {metric} of {features}")
            settings = {
                "model": model, "arch": arch, "vqvae": vqvae, "reference": reference, "metric": metric,
                "reference_digest": prepared.summary.digest, "features": features, "weights": network.weights,
            }  # fmt: skip
            sweep(
                pipeline, _judge(metric, prepared, batch_size, place), presets, out, settings=settings,
                per_class=per_class, seed=seed, batch_size=batch_size, processes=processes,
                on_cell=lambda cell: say(f"{_line(cell)}: {metric} {cell.figure(metric):.4g}"),
            )  # fmt: skip
        title = f"{model}, {total:,} images per preset: {metric} of {features}"
        title = ", ".join([title, *others_in_words(others)])
        processes.run_on_rank0(lambda: _finish(out, read_cells(out, presets), metric, title))
    finally:
        processes.close()


def _judge(
    metric: str, prepared: Reference, batch_size: int, device: str
) -> Callable[[Path], dict[str, float]]:
    """Return what judges a file of images."""

    def judge(file: Path) -> dict[str, float]:
        found = evaluate(
            file, prepared, metrics=[metric], per_class=False, batch_size=batch_size, device=device
        )
        return {name: found[name] for name in (metric, f"{metric}_deviation") if name in found}

    return judge


def _finish(out: Path, cells: list[Cell], metric: str, title: str) -> None:
    best = write_summary(out, cells, metric)
    draw_heat_map(out / "heat_map.png", cells, metric, title)
    click.echo(f"best: {_line(best)}, {metric} {best.figure(metric):.4g}; see {out / 'heat_map.png'}")
    click.echo(f"to draw with it: mvar sample --preset {out / 'preset.json'}")


def _line(cell: Cell) -> str:
    preset = cell.preset
    line = f"guidance_scale {preset.guidance_scale:g}, top_k {preset.top_k}, top_p {preset.top_p:g}"
    return ", ".join([line, *others_in_words(preset)])
