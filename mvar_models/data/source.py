"""Pictures with labels: what every source of them offers, how one is opened, and the split that every command keeps.

A dataset is a fixed list of examples; nothing random happens here but the split, which depends on the number of examples and the seed alone.

Pictures that cannot be read are found when they are read, because looking into each of a million files first would cost as much as using
them. Making codes leaves them out (`readable`); training on pictures themselves takes the next picture of the same class in their place
(`images`), so that a batch is the same whichever process meets the broken one first. Both say so and count them.
"""

from __future__ import annotations

import abc
import hashlib
import logging
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mvar_models.checkpoints import zoo
from mvar_models.data.decode import BrokenPicture

logger = logging.getLogger(__name__)

DIGITS = "digits"
SPLIT_SEED = 0
HELD_OUT, MOST_HELD_OUT = 0.25, 10_000
_READERS = 8
_TOLD = 5


class ImageSource(abc.ABC):
    """Examples 0 .. len - 1.

    Attributes:
        labels: (N,) int64.
        class_names: one per label.
        flips: whether a mirrored picture is still of its class.
        held_out: (N,) bool where the data itself says which examples are held out, else None.
        left_out: name -> reason of files that are no examples because opening the data found them unusable.
        unreadable: example -> reason, as far as pictures were read.
    """

    labels: np.ndarray
    class_names: tuple[str, ...]
    flips: bool
    held_out: np.ndarray | None = None
    left_out: dict[str, str]
    unreadable: dict[int, str]

    def __init__(self, labels: np.ndarray, class_names: Sequence[str], flips: bool) -> None:
        self.labels = np.asarray(labels, dtype=np.int64)
        self.class_names = tuple(class_names)
        self.flips = flips
        self.left_out, self.unreadable = {}, {}

    def __len__(self) -> int:
        return len(self.labels)

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """16 hex digits that change with the list of examples (names, sizes, labels, classes); no picture is read for it."""

    @abc.abstractmethod
    def name(self, index: int) -> str:
        """Of an example, for messages."""

    @abc.abstractmethod
    def read(self, index: int) -> Tensor:
        """(3, R, R) float32 in [-1, 1]; BrokenPicture where there is none."""

    def readable(self, which: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """(m, 3, R, R) of those of `which` that can be read, and their m positions in `which`."""
        found = self._try_all(which)
        kept = [position for position, image in enumerate(found) if image is not None]
        images = [image for image in found if image is not None]
        return (torch.stack(images) if images else torch.empty(0, 3, 0, 0)), np.array(kept, dtype=np.int64)

    def images(self, which: np.ndarray) -> Tensor:
        """(n, 3, R, R) float32 in [-1, 1]; the next readable picture of the same class stands in for one that cannot be read.

        Raises:
            ValueError: no picture of a class can be read.
        """
        return torch.stack(
            [
                self._stand_in(int(i)) if image is None else image
                for i, image in zip(which, self._try_all(which))
            ]
        )

    def problems(self) -> dict[str, str]:
        """name -> reason of everything found unusable so far."""
        return {
            **self.left_out,
            **{self.name(index): reason for index, reason in sorted(self.unreadable.items())},
        }

    def tell_problems(self) -> None:
        """One line in the log with the number of files left out and why, where there are any."""
        problems = self.problems()
        if problems:
            listed = "; ".join(f"{name} {reason}" for name, reason in list(problems.items())[:_TOLD])
            logger.warning(
                "%d left out beside %d pictures: %s", len(problems), len(self) - len(self.unreadable), listed
            )

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        # Pillow decodes and resizes outside the interpreter's lock.
        return ThreadPoolExecutor(min(_READERS, os.cpu_count() or 1))

    def _try_all(self, which: np.ndarray) -> Iterable[Tensor | None]:
        return list(self._pool.map(self._try, (int(index) for index in which)))

    def _try(self, index: int) -> Tensor | None:
        if index in self.unreadable:
            return None
        try:
            return self.read(index)
        except BrokenPicture as broken:
            self.unreadable[index] = str(broken)
            found = len(self.unreadable)
            if found <= _TOLD:
                logger.warning(
                    "%s %s; left out%s",
                    self.name(index),
                    broken,
                    " (more are only counted)" if found == _TOLD else "",
                )
            return None

    def _stand_in(self, index: int) -> Tensor:
        members = np.flatnonzero(self.labels == self.labels[index])
        after = np.searchsorted(members, index) + 1
        for candidate in np.roll(members, -after):
            image = self._try(int(candidate))
            if image is not None:
                return image
        raise self.unusable_class(int(self.labels[index]))

    def unusable_class(self, label: int) -> ValueError:
        """The error where no picture of a class can be read."""
        first = int(np.flatnonzero(self.labels == label)[0])
        count = int((self.labels == label).sum())
        example = f"{self.name(first)} {self.unreadable.get(first, 'is left out')}"
        return ValueError(
            f"class {self.class_names[label]!r} has no picture that can be read ({count} tried; {example}); mend or remove it"
        )


def open_source(data: str | os.PathLike[str], resolution: int) -> ImageSource:
    """A dataset by what `--data` takes.

    Args:
        data: "digits"; a folder with one folder of pictures per class (or of pictures alone: one class); a folder that `mvar tokenize` wrote;
            a .parquet file, a folder of them, or a folder of `datasets.save_to_disk`; or a Hugging Face dataset as org/name. The last three
            may end in ":split" (default: train), or ":config:split".
        resolution: side of the pictures in pixels.

    Raises:
        FileNotFoundError: nothing of that name.
        ValueError: it holds nothing to train on; the message says what is missing.
    """
    from mvar_models.data import hub_datasets
    from mvar_models.data.folders import ClassFolders
    from mvar_models.tokens import folder as token_cache

    text = str(data)
    if text == DIGITS:
        from mvar_models.data.digits import Digits

        return Digits(resolution)
    check_data_exists(text)
    place, part = _place_and_part(text)
    path = Path(place)
    if path.is_dir() and token_cache.is_token_folder(path):
        return token_cache.TokenFolder(path)
    if hub_datasets.is_local(path) or not path.exists():
        return hub_datasets.HubDataset(place, resolution, part)
    return ClassFolders(path, resolution)


def check_data_exists(data: str | os.PathLike[str]) -> None:
    """Whether `open_source` has something to open, told before anything is downloaded for it; a dataset of the Hub is taken on trust.

    Raises:
        FileNotFoundError: nothing of that name here, and it is no dataset's id.
    """
    from mvar_models.data import hub_datasets

    text = str(data)
    place, _ = _place_and_part(text)
    path = Path(place)
    if (
        text == DIGITS
        or path.is_dir()
        or hub_datasets.is_local(path)
        or (not path.exists() and zoo.looks_like_hub_id(place))
    ):
        return
    what = f"{path} is a file of another kind" if path.is_file() else f"{place}: nothing of that name"
    raise FileNotFoundError(
        f"{what}; data must be 'digits' or a folder (one folder of pictures per class, or what `mvar tokenize` wrote), a .parquet file, "
        "or a Hugging Face dataset as org/name"
    )


def _place_and_part(data: str) -> tuple[str, str]:
    """What stands before ":split" or ":config:split", and that; a path that exists is taken whole."""
    place, _, part = (data, "", "") if Path(data).exists() else data.partition(":")
    return place, part


def split(
    source: ImageSource, held_out: float = HELD_OUT, seed: int = SPLIT_SEED
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training and of the held-out examples; the same share of every class is held out, a quarter, and about 10,000 at most.

    With so few examples that none can be spared, the training examples are also the held-out ones, and a warning says so.
    """
    if source.held_out is not None:
        train, val = np.flatnonzero(~source.held_out), np.flatnonzero(source.held_out)
    else:
        train, val = _draw_split(source, min(held_out, MOST_HELD_OUT / max(1, len(source))), seed)
    if not len(val):
        logger.warning(
            "%d pictures are too few to hold any out; validation is on the training pictures", len(source)
        )
        val = train
    return train, val


def _draw_split(source: ImageSource, held_out: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    train, val = [], []
    for label in range(len(source.class_names)):
        members = rng.permutation(np.flatnonzero(source.labels == label))
        cut = round(len(members) * held_out)
        val.append(members[:cut])
        train.append(members[cut:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(val))


def digest(*parts: str | bytes) -> str:
    """16 hex digits of SHA-256 over the parts; where one ends and the next begins matters."""
    total = hashlib.sha256()
    for part in parts:
        value = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        total.update(len(value).to_bytes(8, "little") + value)
    return total.hexdigest()[:16]


def content_fingerprint(
    class_names: Sequence[str], labels: np.ndarray, names: Iterable[str], sizes: np.ndarray
) -> str:
    """Of a list of examples: their classes, labels, names and sizes in bytes."""
    parts = "\0".join(class_names), "\0".join(names)
    return digest(*parts, np.asarray(labels, dtype="<i8").tobytes(), np.asarray(sizes, dtype="<i8").tobytes())
