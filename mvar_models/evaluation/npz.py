"""Images in one .npz, written and read a piece at a time, under OpenAI's names of arrays or NumPy's own.

An .npz is a zip of .npy files. `numpy.load` would bring a whole member into memory (50,000 images of 256 px
are 10 GB).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from mvar_models.data.arrays import (
    damage_named,
    npz_comment,
    npz_names,
    open_member,
    open_npz,
    read_array,
    read_bytes,
    read_header,
    read_npy,
)
from mvar_models.distributed import Processes
from mvar_models.evaluation.image_sets import ImageSet
from mvar_models.files import SettingsMismatch, claim, compare, file_digest, replacing
from mvar_models.pipeline import Pipeline
from mvar_models.pipeline.identity import determinants
from mvar_models.sampling.progress import SAMPLING, counting
from mvar_models.sampling.settings import SamplingSettings

_SETTINGS = "settings.json"
# Bytes: the comment of a zip, which holds the settings, has at most 65,535.
_MOST_NAMES = 60_000
_IMAGES, _LABELS, _CLASS_NAMES = ("arr_0", "images"), ("arr_1", "labels"), "class_names"
# Of an entry's header in a zip: 30 bytes, then its name and extra field, whose lengths stand at 26 and 28.
_LOCAL_HEADER = 30


def write_npz(
    pipeline: Pipeline,
    file: str | os.PathLike[str],
    *,
    per_class: int = 50,
    seed: int = 0,
    batch_size: int = 32,
    processes: Processes | None = None,
    checkpoint: Mapping[str, Any] | None = None,
    settings: SamplingSettings | None = None,
    batch_invariant: bool | None = None,
) -> bool:
    """Sample this process's parts of (N, R, R, 3) uint8, every class equally often, and join them in the end.

    Image i has label i // per_class and seed `seed` + i, and the batch it is sampled in depends on i alone,
    so any number of processes gives the same file. A stopped run continues where it was; a finished one does
    nothing. File and parts name all that determines the images; others are refused, never joined.

    Args:
        pipeline: Samples the images.
        file: The .npz to write; the parts lie in a folder next to it.
        per_class: Images of each class, in the order of the labels.
        seed: Seed of the first image.
        batch_size: Images sampled at a time, which is also the size of a part; another value is another run.
        processes: Those that share the work; nothing is communicated.
        checkpoint: Where the pipeline was loaded from; parts of another one are refused.
        settings: Settings of sampling; default: the checkpoint's.
        batch_invariant: As for `Pipeline.__call__`.

    Returns:
        Whether the file is complete now; False where other processes are not done yet.

    Raises:
        FileExistsError: the file exists already, of other weights, settings or another version.
        ValueError: the folder of parts is of others.
    """
    file, processes = Path(file), processes or Processes()
    if per_class < 1:
        raise ValueError(f"per_class must be at least 1, got {per_class}")
    total = pipeline.model.config.num_classes * per_class
    settings = settings or SamplingSettings.of(pipeline.model.config)
    options = {**settings.to_dict(), "batch_invariant": batch_invariant}
    noted = {
        **(checkpoint or {}),
        "per_class": per_class,
        "seed": seed,
        "batch_size": batch_size,
        **determinants(pipeline, settings),
    }
    names = pipeline.model.config.class_names
    if names and len(json.dumps(names)) <= _MOST_NAMES:
        noted["class_names"] = names
    noted = json.loads(json.dumps(noted))
    if file.exists():
        try:
            compare(file, npz_comment(file), noted, "images")
        except SettingsMismatch as error:
            raise FileExistsError(
                f"{file} exists already and was made with other settings ({', '.join(error.changed)} "
                "differ); remove it or choose another name"
            ) from None
        return True
    folder = file.with_name(file.name + ".parts")
    claim(folder / _SETTINGS, noted, "images")
    parts = {
        folder / f"{start:08d}.npy": range(start, min(start + batch_size, total))
        for start in range(0, total, batch_size)
    }
    mine = list(parts)[processes.rank :: processes.world_size]
    missing = [part for part in mine if not part.exists()]
    images_of = [sum(len(parts[part]) for part in some) for some in (mine, missing)]
    with counting(SAMPLING, images_of[0], done=images_of[0] - images_of[1]):
        for part in missing:
            labels, seeds = [i // per_class for i in parts[part]], [seed + i for i in parts[part]]
            images = pipeline(labels, seed=seeds, batch_size=batch_size, output_type="np", **options).images
            with replacing(part) as temporary:
                np.save(temporary, images)
    if not all(part.exists() for part in parts):
        return file.exists()
    try:
        _join(file, parts, noted, pipeline.vqvae.config.resolution)
    except FileNotFoundError:  # another process has joined and removed them
        return file.exists()
    shutil.rmtree(folder, ignore_errors=True)
    return True


def _join(file: Path, parts: Mapping[Path, range], settings: dict[str, Any], side: int) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (sum(map(len, parts.values())), side, side, 3)}
    with replacing(file) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        archive.comment = json.dumps(settings).encode()
        with archive.open("arr_0.npy", "w", force_zip64=True) as entry:
            np.lib.format.write_array_header_1_0(entry, header)
            for part, members in parts.items():
                entry.write(read_npy(part, np.dtype(np.uint8), (len(members), side, side, 3)).tobytes())


class NpzImages(ImageSet):
    """The images of an .npz as a set, of which only the rows that are asked for are in memory.

    `class_names` come from the array of that name, or from the settings that `write_npz` notes; so do labels.

    Args:
        file: The .npz, with the images as `arr_0` or `images`, and labels, if any, as `arr_1` or `labels`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no .npz, it is cut off, or it has no images (N, H, W, 3) of uint8.
    """

    def __init__(self, file: str | os.PathLike[str]) -> None:
        self._path = Path(file)
        names = npz_names(self._path)
        member = _first(_IMAGES, names)
        if member is None:
            raise ValueError(
                f"{file} has no images: it must have arr_0 or images, "
                f"it has {', '.join(sorted(names)) or 'nothing'}"
            )
        self._member, what = member, f"{file}: {member}"
        with open_npz(self._path) as archive, open_member(archive, member) as entry:
            shape, dtype = read_header(entry, what)
            self._begin = entry.tell()
            _check_images(shape, dtype, what)
            info = archive.getinfo(f"{member}.npy")
            self._stored = info.compress_type == zipfile.ZIP_STORED
            self._offset = info.header_offset
            self._row = math.prod(shape[1:])
            if info.file_size != self._begin + shape[0] * self._row:
                raise ValueError(f"{what} is cut off, it has {info.file_size:,} bytes")
        labels = self._read_labels(names, shape[0])
        super().__init__(
            str(file), shape[0], (shape[1], shape[2]), labels, read_class_names(self._path, names, labels)
        )

    @property
    def digest(self) -> str:
        return file_digest(self._path)

    def ranges(self, starts: Sequence[int], count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        with self._opened() as (file, begin):
            for start in starts:
                rows = min(count, len(self) - start)
                with damage_named(self.name):
                    file.seek(begin + start * self._row)
                values = read_bytes(file, rows * self._row, self.name)
                images = np.frombuffer(values, np.uint8).reshape(rows, *self.size, 3)
                yield np.arange(start, start + rows), images

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows, places = np.unique(indices, return_inverse=True)
        images = [image for _, image in self.ranges([int(row) for row in rows], 1)]
        return np.concatenate([np.empty((0, *self.size, 3), np.uint8), *images])[places], np.arange(
            len(indices)
        )

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[IO[bytes], int]]:
        """Open the bytes, and tell where in them the first image begins."""
        with open_npz(self._path) as archive:
            if not self._stored:
                with open_member(archive, self._member) as entry:
                    yield entry, self._begin
                return
            # Bytes as they are: straight from the file, where a seek costs nothing.
            with self._path.open("rb") as file:
                file.seek(self._offset)
                header = read_bytes(file, _LOCAL_HEADER, self.name)
                lengths = sum(int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
                yield file, self._offset + _LOCAL_HEADER + lengths + self._begin

    def _read_labels(self, names: set[str], count: int) -> np.ndarray | None:
        member = _first(_LABELS, names)
        if member is not None:
            return read_array(self._path, member, "iu", (count,)).astype(np.int64)
        # `write_npz` notes it: images lie class by class.
        per_class = npz_comment(self._path).get("per_class")
        if isinstance(per_class, int) and per_class > 0 and count % per_class == 0:
            return np.arange(count) // per_class
        return None


def read_class_names(path: Path, names: set[str], labels: np.ndarray | None) -> tuple[str, ...] | None:
    """Read the names of an .npz's classes, if it has labels and names.

    Raises:
        ValueError: a label has no name.
    """
    if labels is None or not len(labels):
        return None
    if _CLASS_NAMES in names:
        known = tuple(str(name) for name in read_array(path, _CLASS_NAMES, "U", (None,)))
    else:
        noted = npz_comment(path).get(_CLASS_NAMES)
        if not isinstance(noted, list) or not all(isinstance(name, str) for name in noted):
            return None
        known = tuple(noted)
    if not 0 <= labels.min() <= labels.max() < len(known):
        raise ValueError(
            f"{path}: {_CLASS_NAMES} has {len(known)} names, for labels from {labels.min()} to {labels.max()}"
        )
    return known


def _first(wanted: Sequence[str], names: set[str]) -> str | None:
    return next((name for name in wanted if name in names), None)


def _check_images(shape: tuple[int, ...], dtype: np.dtype[Any], what: str) -> None:
    if dtype != np.uint8:
        raise ValueError(f"{what} must be uint8 from 0 to 255, got {dtype}")
    if len(shape) == 3 or (len(shape) == 4 and shape[3] == 1):
        raise ValueError(f"{what} is grey, (N, H, W); repeat it to (N, H, W, 3), got {shape}")
    if len(shape) != 4 or shape[3] != 3 or 0 in shape[1:]:
        raise ValueError(f"{what} must be (N, H, W, 3), got {shape}")
