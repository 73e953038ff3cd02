"""`mvar sample`: pictures to PNGs with a record that draws them again, or to the one file that FID programs read."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mvar_models import __version__
from mvar_models.cli.common import clear_errors
from mvar_models.devices import default_device

if TYPE_CHECKING:
    from mvar_models.pipeline import Pipeline

_RECORD = "samples.json"
# Without --labels: every class of a model that has few, else as many, spread evenly.
_DEFAULT_CLASSES = 10
_GRID_PICTURES = 400


@dataclass(frozen=True)
class Sampling:
    """What decides the pictures: the checkpoint, the options of the pipeline's call, a label and a seed for each picture."""

    model: str
    arch: str | None
    vqvae: str | None
    dtype: str
    options: dict[str, Any] = field(default_factory=dict)
    labels: list[int] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    batch_size: int = 32  # on a GPU a picture's last bits depend on it

    def pipeline(self, device: str) -> Pipeline:
        import torch

        from mvar_models.pipeline import pipeline_for

        return pipeline_for(
            self.model, arch=self.arch, vqvae=self.vqvae, device=device, dtype=getattr(torch, self.dtype)
        )


@click.command()
@click.option("--model", default=None, help="Zoo name, folder, file or Hub id.")
@click.option(
    "--labels",
    default=None,
    help="Class numbers or names, separated by commas. Default: every class, of many ten spread evenly.",
)
@click.option("--n", default=8, type=click.IntRange(min=1), help="Pictures per label.")
@click.option("--seed", default=0, help="Picture i takes seed + i.")
@click.option("--guidance-scale", type=float, default=None, help="Default: the checkpoint's.")
@click.option("--top-k", type=int, default=None, help="Default: the checkpoint's; 0 is off.")
@click.option("--top-p", type=float, default=None, help="Default: the checkpoint's; 0 is off.")
@click.option("--more-smooth", is_flag=True, help="Mix codes: nicer pictures, not for metrics.")
@click.option("--batch-size", default=32, type=click.IntRange(min=1), help="Pictures at a time.")
@click.option("--device", default=None, help="Default: cuda where there is one.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    help="Of the weights.",
)
@click.option(
    "--arch",
    type=click.Choice(["var", "mvar"]),
    default=None,
    help="For a released .pth that does not say which it is.",
)
@click.option(
    "--vqvae", default=None, help="Zoo name, folder or file of the VQVAE. Default: the checkpoint's own."
)
@click.option(
    "--per-class", type=click.IntRange(min=1), default=None, help="With --npz: pictures of every class."
)
@click.option(
    "--npz",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Write one file for FID programs instead of PNGs.",
)
@click.option(
    "--again",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Draw the pictures of this samples.json again.",
)
@click.option("--out", "-o", default="samples", type=click.Path(path_type=Path, file_okay=False))
@click.pass_context
@clear_errors
def sample(
    context: click.Context,
    labels: str | None,
    n: int,
    seed: int,
    npz: Path | None,
    again: Path | None,
    **given: Any,
) -> None:
    """Draw pictures: one PNG each, a grid, and samples.json, from which --again draws them again.

    With --per-class 50 --npz FILE: that many of every class in one .npz, the file FID programs read. It goes on where a stopped run was, and
    under torchrun the processes share the work; the pictures are the same.
    """
    from mvar_models.sampling.sampler import check_filters

    batch_size, out, per_class = given.pop("batch_size"), given.pop("out"), given.pop("per_class")
    device, rank, world_size = _place(given.pop("device"))
    if again is not None:
        _only_beside_again(context)
        sampling = _read_record(again)
        if context.get_parameter_source("batch_size") is click.core.ParameterSource.COMMANDLINE:
            sampling = replace(sampling, batch_size=batch_size)
        _write_pictures(sampling.pipeline(device), sampling, out, columns=8)
        return
    if given["model"] is None:
        raise click.UsageError("--model is missing: what should draw?")
    if (per_class is None) != (npz is None):
        raise click.UsageError("--per-class and --npz go together")
    if npz is not None and labels is not None:
        raise click.UsageError("--npz takes every class; leave out --labels")
    checkpoint = {name: given.pop(name) for name in ("model", "arch", "vqvae", "dtype")}
    sampling = Sampling(**checkpoint)
    pipeline = sampling.pipeline(device)
    config = pipeline.model.config
    options = {name: getattr(config, name) if value is None else value for name, value in given.items()}
    check_filters(options["top_k"], options["top_p"])
    if npz is not None:
        _write_npz(
            pipeline,
            npz,
            per_class,
            checkpoint,
            rank,
            world_size,
            seed=seed,
            batch_size=batch_size,
            **options,
        )
        return
    chosen = [part.strip() for part in labels.split(",")] if labels else _default_labels(config.num_classes)
    each = [number for number in map(pipeline.label_of, chosen) for _ in range(n)]
    sampling = Sampling(
        **checkpoint,
        options=options,
        labels=each,
        seeds=list(range(seed, seed + len(each))),
        batch_size=batch_size,
    )
    _write_pictures(pipeline, sampling, out, columns=n)


def _place(device: str | None) -> tuple[str, int, int]:
    """Device, rank and number of processes, as torchrun tells."""
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = device or default_device()
    return (
        f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if device == "cuda" and world_size > 1 else device,
        rank,
        world_size,
    )


def _default_labels(classes: int) -> list[int]:
    count = min(classes, _DEFAULT_CLASSES)
    return [classes * i // count for i in range(count)]


def _write_pictures(pipeline: Pipeline, sampling: Sampling, out: Path, columns: int) -> None:
    """A PNG each as soon as it is drawn, then the grid, then the record, so that a record means that all are there."""
    import torch

    from mvar_models.files import replacing, write_text
    from mvar_models.images import grid
    from mvar_models.optional import require

    out.mkdir(parents=True, exist_ok=True)
    (out / _RECORD).unlink(missing_ok=True)
    names, total, batch_size = pipeline.model.config.class_names, len(sampling.labels), sampling.batch_size
    shown, pictures = [], []
    with require("tqdm", "train").tqdm(
        total=total, unit="picture", dynamic_ncols=True, disable=not sys.stderr.isatty()
    ) as bar:
        for start in range(0, total, batch_size):
            labels, seeds = (
                sampling.labels[start : start + batch_size],
                sampling.seeds[start : start + batch_size],
            )
            for picture, label, seed in zip(
                pipeline(labels, seed=seeds, batch_size=batch_size, **sampling.options), labels, seeds
            ):
                file = f"{len(pictures):05d}_{label}.png"
                with replacing(out / file) as temporary:
                    picture.save(temporary, format="png")
                pictures.append(
                    {"file": file, "label": label, "name": names[label] if names else None, "seed": seed}
                )
                shown += [picture] if len(shown) < _GRID_PICTURES else []
            bar.update(len(labels))
    with replacing(out / "grid.png") as temporary:
        grid(shown, columns=columns).save(temporary, format="png")
    record = {name: value for name, value in asdict(sampling).items() if name not in ("labels", "seeds")}
    versions = {"mvar": __version__, "torch": torch.__version__}
    text = json.dumps(
        {
            "again": f"mvar sample --again {out / _RECORD}",
            "versions": versions,
            **record,
            "pictures": pictures,
        },
        indent=2,
    )
    write_text(out / _RECORD, text + "\n")
    click.echo(f"{total} pictures, grid.png and {_RECORD} in {out}")


def _read_record(path: Path) -> Sampling:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; --again takes the {_RECORD} that mvar sample wrote")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        pictures = values["pictures"]
        checkpoint = {name: values[name] for name in ("model", "arch", "vqvae", "dtype", "options")}
        labels, seeds = ([picture[name] for picture in pictures] for name in ("label", "seed"))
        return Sampling(**checkpoint, labels=labels, seeds=seeds, batch_size=values.get("batch_size", 32))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no samples.json of mvar sample: {type(error).__name__} {error}"
        ) from None


def _only_beside_again(context: click.Context) -> None:
    allowed = {"again", "out", "device", "batch_size"}
    given = [
        name
        for name in context.params
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    ]
    extra = sorted("--" + name.replace("_", "-") for name in given if name not in allowed)
    if extra:
        raise click.UsageError(f"--again draws what the file says; leave out {', '.join(extra)}")


def _write_npz(
    pipeline: Pipeline,
    npz: Path,
    per_class: int,
    checkpoint: dict[str, Any],
    rank: int,
    world_size: int,
    **options: Any,
) -> None:
    from mvar_models.evaluation.npz import write_npz
    from mvar_models.optional import require

    with require("tqdm", "train").tqdm(
        unit="batch", dynamic_ncols=True, disable=rank > 0 or not sys.stderr.isatty()
    ) as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        complete = write_npz(
            pipeline,
            npz,
            per_class=per_class,
            rank=rank,
            world_size=world_size,
            checkpoint=checkpoint,
            report=report,
            **options,
        )
    if complete:
        click.echo(f"{pipeline.model.config.num_classes * per_class} pictures in {npz}")
    else:
        click.echo(
            f"process {rank} is done; the file appears when all {world_size} are, or when the command is run again"
        )
