"""The file that the field's FID programs read: every class equally often, uint8, (N, R, R, 3) under `arr_0` of one .npz.

Picture i has label i // per_class and seed `seed` + i, and pictures are drawn in batches that depend on i alone. So any number of processes
gives the same file: process r of n draws every n-th part, parts appear complete or not at all, and whoever finds all of them joins them. A
stopped run goes on where it was.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mvar_models.checkpoints import replacing
from mvar_models.claims import claim
from mvar_models.pipeline import Pipeline

_SETTINGS = "settings.json"
_JOINING = "joining"


def write_npz(
    pipeline: Pipeline,
    file: str | os.PathLike[str],
    *,
    per_class: int = 50,
    seed: int = 0,
    batch_size: int = 32,
    rank: int = 0,
    world_size: int = 1,
    name: str = "",
    report: Callable[[int, int], None] | None = None,
    **options: Any,
) -> bool:
    """Draw this process's parts of the file, and join them when all are there.

    Args:
        per_class: pictures of each class, in the order of the labels.
        batch_size: pictures drawn at a time, which is also a part; another value is another run.
        rank, world_size: which process of how many this is.
        name: of the model; a folder of parts made with another one is refused.
        report: called with pictures done by this process and its share.
        options: as for the pipeline's call.

    Returns:
        Whether the file is complete now; False where other processes are not done yet.

    Raises:
        FileExistsError: the file exists already.
        ValueError: the folder of parts belongs to other settings.
    """
    file = Path(file)
    if file.exists():
        raise FileExistsError(f"{file} exists already; remove it or choose another name")
    if per_class < 1:
        raise ValueError(f"per_class must be at least 1, got {per_class}")
    total = pipeline.model.config.num_classes * per_class
    settings = {"model": name, "per_class": per_class, "seed": seed, "batch_size": batch_size, "pictures": total, **options}
    parts = file.with_name(file.name + ".parts")
    claim(parts / _SETTINGS, settings, "pictures")
    starts = range(0, total, batch_size)
    mine = starts[rank::world_size]
    for done, start in enumerate(mine):
        target = _part(parts, start)
        if not target.exists():
            which = range(start, min(start + batch_size, total))
            labels, seeds = [i // per_class for i in which], [seed + i for i in which]
            pictures = pipeline(labels, seed=seeds, batch_size=batch_size, output_type="np", **options)
            with replacing(target) as temporary:
                np.save(temporary, pictures)
        if report is not None:
            report(done + 1, len(mine))
    if not all(_part(parts, start).exists() for start in starts):
        return file.exists()
    return _join(file, parts, [_part(parts, start) for start in starts], total, pipeline.vqvae.config.resolution)


def _part(parts: Path, start: int) -> Path:
    return parts / f"{start:08d}.npy"


def _join(file: Path, parts: Path, pieces: list[Path], total: int, side: int) -> bool:
    """One process joins; the marker left by one that was killed while joining has no living owner and is taken over."""
    try:
        handle = os.open(parts / _JOINING, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        owner = (parts / _JOINING).read_text(encoding="utf-8").strip()
        if owner.isdigit() and _alive(int(owner)):
            return False
        handle = os.open(parts / _JOINING, os.O_WRONLY | os.O_TRUNC)
    except FileNotFoundError:  # another process has joined them and removed the folder
        return file.exists()
    os.write(handle, str(os.getpid()).encode())
    os.close(handle)
    header = {"descr": "|u1", "fortran_order": False, "shape": (total, side, side, 3)}
    with (
        replacing(file) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as entry,
    ):
        np.lib.format.write_array_header_1_0(entry, header)
        for piece in pieces:
            entry.write(np.load(piece, allow_pickle=False).tobytes())
    shutil.rmtree(parts)
    return True


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return process != os.getpid()
