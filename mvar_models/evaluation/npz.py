"""The file that FID programs read: every class equally often, (N, R, R, 3) uint8 as `arr_0` of one .npz.

Image i has label i // per_class and seed `seed` + i, and the batch it is drawn in depends on i alone. So
any number of processes gives the same file: process r of n draws every n-th part, parts appear complete or
not at all, and the process that finds all of them joins them. A stopped run continues where it was; a
finished one does nothing. Both are kept under what determines the images: parts of other weights, of another
preset or of another version are refused, never joined.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mvar_models.data.arrays import npz_comment, read_npy
from mvar_models.files import SettingsMismatch, claim, compare, replacing
from mvar_models.pipeline import Pipeline
from mvar_models.pipeline.identity import determinants

_SETTINGS = "settings.json"
# Bytes: the comment of a zip, which holds the settings, has at most 65,535.
_MOST_NAMES = 60_000


def write_npz(
    pipeline: Pipeline,
    file: str | os.PathLike[str],
    *,
    per_class: int = 50,
    seed: int = 0,
    batch_size: int = 32,
    rank: int = 0,
    world_size: int = 1,
    checkpoint: Mapping[str, Any] | None = None,
    report: Callable[[int, int], None] | None = None,
    **options: Any,
) -> bool:
    """Draw this process's parts of the file, and join them when all are there.

    Args:
        pipeline: Draws the images.
        file: The .npz to write; the parts lie in a folder next to it.
        per_class: Images of each class, in the order of the labels.
        seed: Seed of the first image.
        batch_size: Images drawn at a time, which is also the size of a part; another value is another run.
        rank, world_size: which process of how many this is.
        checkpoint: what the pipeline was loaded from; a folder of parts made with another one is refused.
        report: Called with the number of parts this process has done and of those it has to do.
        options: as for the pipeline's call.

    Returns:
        Whether the file is complete now; False where other processes are not done yet.

    Raises:
        FileExistsError: the file exists already, of other weights, settings or another version.
        ValueError: the folder of parts is of others.
    """
    file = Path(file)
    if per_class < 1:
        raise ValueError(f"per_class must be at least 1, got {per_class}")
    total = pipeline.model.config.num_classes * per_class
    settings = {
        **(checkpoint or {}),
        "per_class": per_class,
        "seed": seed,
        "batch_size": batch_size,
        "pictures": total,  # the name that files of version 0.1.0 have
        **determinants(pipeline, **options),
    }
    names = pipeline.model.config.class_names
    if names and len(json.dumps(names)) <= _MOST_NAMES:
        settings["class_names"] = names
    settings = json.loads(json.dumps(settings))
    if file.exists():
        try:
            compare(file, _settings_of(file), settings, "images")
        except SettingsMismatch as error:
            raise FileExistsError(
                f"{file} exists already and was made with other settings ({', '.join(error.changed)} "
                "differ); remove it or choose another name"
            ) from None
        return True
    parts = file.with_name(file.name + ".parts")
    claim(parts / _SETTINGS, settings, "images")
    starts = range(0, total, batch_size)
    mine = starts[rank::world_size]
    for done, start in enumerate(mine):
        target = _part(parts, start)
        if not target.exists():
            members = range(start, min(start + batch_size, total))
            labels, seeds = [i // per_class for i in members], [seed + i for i in members]
            images = pipeline(labels, seed=seeds, batch_size=batch_size, output_type="np", **options)
            with replacing(target) as temporary:
                np.save(temporary, images)
        if report is not None:
            report(done + 1, len(mine))
    if not all(_part(parts, start).exists() for start in starts):
        return file.exists()
    return _join(
        file, parts, [_part(parts, start) for start in starts], settings, pipeline.vqvae.config.resolution
    )


def _part(parts: Path, start: int) -> Path:
    return parts / f"{start:08d}.npy"


def _join(file: Path, parts: Path, pieces: list[Path], settings: dict[str, Any], side: int) -> bool:
    """Join the parts; two processes may do it at once, and the later one may find them removed."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (settings["pictures"], side, side, 3)}
    try:
        with replacing(file) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            archive.comment = json.dumps(settings).encode()
            with archive.open("arr_0.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array_header_1_0(entry, header)
                for index, piece in enumerate(pieces):
                    rows = min(settings["batch_size"], settings["pictures"] - index * settings["batch_size"])
                    entry.write(read_npy(piece, np.dtype(np.uint8), (rows, side, side, 3)).tobytes())
    except FileNotFoundError:
        return file.exists()
    shutil.rmtree(parts, ignore_errors=True)
    return True


def _settings_of(file: Path) -> dict[str, Any]:
    """What a finished file was made with; it stands in the comment of its archive."""
    return npz_comment(file)
