"""Datasets of the `datasets` library (extra `data`): from the Hub, local parquet, or `save_to_disk`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mvar_models.checkpoints.locate import hub_answers
from mvar_models.data.class_names import class_order
from mvar_models.data.source import ImageSource, content_fingerprint
from mvar_models.data.transforms import load_image, read_file
from mvar_models.files import digest
from mvar_models.images import UnreadableImage
from mvar_models.optional import require
from mvar_models.sampling.labels import composed

_IMAGE_NAMES = ("image", "img", "picture", "png", "jpg", "webp", "pixel_values")
_LABEL_NAMES = ("label", "labels", "class", "category", "cls", "target")
_DEFAULT_SPLIT = "train"
# Versions below 4 run code that a dataset brings along.
_OLDEST_VERSION = 4
# Rows per read of the fingerprint, which must not hold all images in memory.
_ROWS_PER_READ = 4096


def is_local(path: Path) -> bool:
    """Return whether a path is parquet, holds some one folder down, or was written by `save_to_disk`."""
    if path.is_file():
        return path.suffix == ".parquet"
    return path.is_dir() and (_is_saved(path) or any(path.glob("*.parquet")) or any(path.glob("*/*.parquet")))


def _is_saved(path: Path) -> bool:
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


class HubDataset(ImageSource):
    """One split of a dataset.

    Args:
        place: a dataset id of the Hub as org/name, or what `is_local` accepts.
        resolution: side of the images in pixels; None leaves it to `at`.
        part: "split" or "config:split"; empty means the split "train", or the only one.

    Raises:
        FileNotFoundError: the Hub does not have the dataset, or does not give access.
        ValueError: there is no such split, or no unambiguous column of images or of labels.
    """

    def __init__(self, place: str, resolution: int | None, part: str = "") -> None:
        self.place = place
        self.resolution = resolution
        rows, library = _load(place, part), require("datasets", "data")
        self._image = _column(rows, place, "images", library.Image, _IMAGE_NAMES, _holds_bytes)
        label = _column(rows, place, "labels", library.ClassLabel, _LABEL_NAMES, _names_classes)
        labels, names = _labels(rows, label, place)
        super().__init__(labels, names, mirror_safe=True)
        # Not decoded by the library, so that odd and broken images are treated as in folders.
        images = rows.select_columns([self._image])
        self._rows = images.cast_column(self._image, library.Image(decode=False))
        # The library's tables are not documented as safe to read from several threads.
        self._lock = threading.Lock()

    @property
    def fingerprint(self) -> str:
        names, sizes, _ = self._listing
        return content_fingerprint(self.class_names, self.labels, names, sizes)

    @property
    def stamps(self) -> np.ndarray:
        """(N,) int64: the tables that the library keeps, and when files beside them were changed."""
        return self._listing[2]

    @cached_property
    def _listing(self) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Return name, bytes and stamp of each row; a file outside the table counts with no bytes."""
        binary_length = require("pyarrow.compute", "data").binary_length
        names: list[str] = []
        sizes: list[int] = []
        for table in self._rows.with_format("arrow").iter(_ROWS_PER_READ):
            column = table[self._image].combine_chunks()
            names += [str(path or "") for path in column.field("path").to_pylist()]
            sizes += [size or 0 for size in binary_length(column.field("bytes")).to_pylist()]
        tables = [Path(entry["filename"]) for entry in self._rows.cache_files]
        kept = digest(*(f"{table.name} {_changed(table)}" for table in tables))
        stamps = np.full(len(names), int(kept[:15], 16))
        for index in np.flatnonzero(np.array(sizes) == 0).tolist():
            stamps[index] ^= _changed(Path(names[index]))
        return names, np.array(sizes), stamps

    def name(self, index: int) -> str:
        return f"{self.place} row {index}"

    def read(self, index: int) -> Tensor:
        return load_image(self.raw(index), self.resolution)

    def raw(self, index: int) -> bytes:
        with self._lock:
            entry = self._rows[index][self._image]
        if entry is None or (entry["bytes"] is None and not entry["path"]):
            raise UnreadableImage("holds no image")
        if entry["bytes"] is not None:
            return bytes(entry["bytes"])
        if "://" in entry["path"]:
            raise UnreadableImage(f"is a link ({entry['path']}), not an image; download the images first")
        return read_file(entry["path"])


def _changed(path: Path) -> int:
    """Return when a file was last changed, in nanoseconds; 0 if there is none."""
    try:
        return path.stat().st_mtime_ns
    except (OSError, ValueError):
        return 0


def _load(place: str, part: str) -> Any:
    datasets = require("datasets", "data")
    if int(datasets.__version__.split(".")[0]) < _OLDEST_VERSION:
        raise ImportError(
            f"datasets {datasets.__version__} can run code from a dataset; "
            f"install {_OLDEST_VERSION} or newer: pip install 'datasets>={_OLDEST_VERSION}'"
        )
    config, _, split = part.rpartition(":")
    path = Path(place)
    options: dict[str, Any] = {"name": config or None}
    try:
        if _is_saved(path):
            loaded = datasets.load_from_disk(str(path))
        elif path.is_file():
            loaded = datasets.load_dataset("parquet", data_files=str(path))
        else:
            with _hub_or_cache(local=path.is_dir()):
                loaded = datasets.load_dataset(str(path) if path.is_dir() else place, **options)
    except (ConnectionError, FileNotFoundError) as error:
        raise FileNotFoundError(
            f"{place}: no such folder here, and the Hub gives no dataset of that name: {_line(error)}"
        ) from None
    # The library raises its own kinds of error for damaged files, missing configurations and more.
    except Exception as error:
        if isinstance(error, MemoryError):
            raise
        raise ValueError(f"{place} cannot be opened as a dataset: {_line(error)}") from None
    if config and (_is_saved(path) or path.is_file()):
        raise ValueError(f"{place} has no configurations; leave out {config!r} of {place}:{part}")
    if not isinstance(loaded, dict):
        if split and split != str(loaded.split):
            raise ValueError(f"{place} has no splits; leave out {split!r} of {place}:{part}")
        return loaded
    if not split:
        split = _DEFAULT_SPLIT if _DEFAULT_SPLIT in loaded or len(loaded) > 1 else next(iter(loaded))
    if split not in loaded:
        raise ValueError(
            f"{place} has no split {split!r}; it has {', '.join(loaded)} "
            f"(choose with {place}:{next(iter(loaded))})"
        )
    return loaded[split]


@contextmanager
def _hub_or_cache(local: bool) -> Iterator[None]:
    """Keep the library from asking a Hub that does not answer, for which it would wait a minute and more."""
    if local or hub_answers():
        yield
        return
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _holds_bytes(kind: Any) -> bool:
    if isinstance(kind, dict):
        return "bytes" in kind
    return getattr(kind, "dtype", "") in ("binary", "large_binary")


def _names_classes(kind: Any) -> bool:
    return getattr(kind, "dtype", "").startswith(("int", "uint", "string", "large_string"))


def _column(
    rows: Any, place: str, what: str, typed: type, usual: tuple[str, ...], fits: Callable[[Any], bool]
) -> str:
    """Choose a column by its type or, failing that, by a usual name; of several, the one with a usual name.

    Args:
        rows: the dataset.
        place: its name, for the error.
        what: what the column holds, for the error.
        typed: the feature type looked for first.
        usual: column names looked for, lower case.
        fits: whether the type of a column with a usual name will do.
    """
    fitting = [name for name, kind in rows.features.items() if isinstance(kind, typed)]
    fitting = fitting or [n for n, kind in rows.features.items() if n.lower() in usual and fits(kind)]
    chosen = fitting if len(fitting) < 2 else [name for name in fitting if name.lower() in usual]
    if len(chosen) != 1:
        problem = f"several columns of {what} ({', '.join(fitting)})" if fitting else f"no column of {what}"
        columns = ", ".join(
            f"{name} ({getattr(kind, 'dtype', None) or type(kind).__name__})"
            for name, kind in rows.features.items()
        )
        raise ValueError(f"{place} has {problem} among {columns}; rename the right one to {usual[0]!r}")
    return chosen[0]


def _labels(rows: Any, column: str, place: str) -> tuple[np.ndarray, list[str]]:
    """Return (N,) labels, and the class names: those of the dataset, else its distinct values in order."""
    values = np.array(rows.with_format(None)[column])
    if not len(values):
        raise ValueError(f"{place} has no rows")
    if values.dtype == object and any(value is None for value in values):
        raise ValueError(f"{place}: some rows of column {column!r} have no label")
    kind = rows.features[column]
    if hasattr(kind, "names"):
        if values.min() < 0:
            raise ValueError(
                f"{place}: some rows of column {column!r} have the label -1, which means none; "
                "choose a labelled split"
            )
        empty = [name for label, name in enumerate(kind.names) if not (values == label).any()]
        if empty:
            more = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
            raise ValueError(f"{place}: class {empty[0]!r}{more} has no images in this split")
        return values.astype(np.int64), [composed(name) for name in kind.names]
    distinct, labels = np.unique(values, return_inverse=True)
    names = [composed(str(name)) for name in distinct]
    chosen = class_order(names, place)
    return np.argsort(chosen)[labels], [names[i] for i in chosen]
