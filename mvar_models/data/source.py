"""Fixed lists of labelled images: their split, their fingerprint, and those that cannot be read.

Unreadable images are found when they are read, because decoding a million files up front would cost as much
as using them. Encoding skips them (`readable`). Training on pixels replaces each with the next image of its
class and part (`images`), so that a batch does not depend on which process meets the unreadable image first,
and nothing held out is trained on. Both log and count them. `Prefetcher` reads the next batch meanwhile.
"""

from __future__ import annotations

import abc
import copy
import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from mvar_models.files import digest
from mvar_models.images import UnreadableImage

logger = logging.getLogger(__name__)

T = TypeVar("T", bound="ImageSource")

_READERS = 8
# Problems written to the log one by one; the rest are only counted.
_LOGGED = 5
_SPLIT_SEED = 0
_HELD_OUT_SHARE = 0.25
# Validation on more images than this costs time and tells nothing new.
_MOST_HELD_OUT = 10_000


class ImageSource(abc.ABC):
    """Labelled images 0 .. len - 1.

    Attributes:
        labels: (N,) int64.
        class_names: one name per label.
        mirror_safe: whether a mirrored image still belongs to its class.
        resolution: side of the images in pixels; None until `at` says it.
        skipped: name -> reason of files that opening the data found unusable; they are no examples.
        unreadable: example -> reason, for the examples that were tried so far.
    """

    labels: np.ndarray
    class_names: tuple[str, ...]
    mirror_safe: bool
    resolution: int | None = None
    skipped: dict[str, str]
    unreadable: dict[int, str]

    def __init__(self, labels: np.ndarray, class_names: Sequence[str], mirror_safe: bool) -> None:
        self.labels = np.asarray(labels, dtype=np.int64)
        self.class_names = tuple(class_names)
        self.mirror_safe = mirror_safe
        self.skipped, self.unreadable = {}, {}

    def __len__(self) -> int:
        return len(self.labels)

    def at(self: T, resolution: int) -> T:
        """Return the same examples with images of that side, without opening the data again."""
        other = copy.copy(self)
        other.resolution = resolution
        return other

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """16 hex digits that change with names, sizes, labels or classes; no image is read for them.

        `stamps` tells whether images were written again, and `content` whether they are the same.
        """

    @property
    def stamps(self) -> np.ndarray:
        """(N,) int64 that change when the bytes of an example are written again; here: they never are.

        Times of modification, so an edit that keeps size and time is not seen.
        """
        return np.zeros(len(self), dtype=np.int64)

    def raw(self, index: int) -> bytes:
        """Return the bytes that an image is decoded from, or raise UnreadableImage; here: there are none."""
        return b""

    def content(self, indices: np.ndarray) -> str:
        """Return 16 hex digits of the bytes of some examples, all of which are read."""
        return digest(*self.hashes(indices))

    def hashes(self, indices: np.ndarray) -> list[bytes]:
        """Return the SHA-256 of the bytes of each example; nothing for one that cannot be read."""

        def hashed(index: int) -> bytes:
            try:
                return hashlib.sha256(self.raw(index)).digest()
            except UnreadableImage:
                return b""

        return list(self._pool.map(hashed, indices.tolist()))

    @abc.abstractmethod
    def name(self, index: int) -> str:
        """Return the name of an example, for messages."""

    @abc.abstractmethod
    def read(self, index: int) -> Tensor:
        """Return one image, (3, R, R) float32 in [-1, 1], or raise UnreadableImage."""

    @cached_property
    def split(self) -> Split:
        """Which examples are for training and which are reserved for validation."""
        return make_split(self.labels, len(self.class_names))

    @property
    def train(self) -> np.ndarray:
        """Indices of the training examples."""
        return self.split.train

    @property
    def held_out(self) -> np.ndarray:
        """Indices of the validation examples; of a dataset too small to spare any, the training examples."""
        return self.split.held_out

    def readable(self, indices: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """Read the images that can be read: (m, 3, R, R), and their m positions in `indices`."""
        read = self._try_all(indices)
        kept = [position for position, image in enumerate(read) if image is not None]
        images = [image for image in read if image is not None]
        return (
            torch.stack(images) if images else torch.empty(0, 3, 0, 0, dtype=torch.float32, device="cpu")
        ), np.array(kept, dtype=np.int64)

    def images(self, indices: np.ndarray) -> Tensor:
        """Read images (n, 3, R, R); an unreadable one is replaced by the next of its class and part.

        A held-out image whose class has no other is replaced by one of another class, also held out.

        Raises:
            ValueError: no training image of a class can be read, or no held-out image at all.
        """
        read = self._try_all(indices)
        return torch.stack(
            [self._stand_in(int(i)) if image is None else image for i, image in zip(indices, read)]
        )

    def problems(self) -> dict[str, str]:
        """Return name -> reason of everything found unusable so far."""
        unreadable = {self.name(index): reason for index, reason in sorted(self.unreadable.items())}
        return {**self.skipped, **unreadable}

    def log_problems(self) -> None:
        """Log one line with the number of unusable files and the first reasons, if there are any."""
        problems = self.problems()
        if problems:
            listed = "; ".join(f"{name} {reason}" for name, reason in list(problems.items())[:_LOGGED])
            usable = len(self) - len(self.unreadable)
            logger.warning("%d skipped, %d images used: %s", len(problems), usable, listed)

    def unusable_class(self, label: int) -> ValueError:
        """Return the error to raise when no image of a class can be read."""
        members = np.flatnonzero(self.labels == label)
        return self._unusable(f"class {self.class_names[label]!r} has no image that can be read", members)

    def _unusable(self, what: str, members: np.ndarray) -> ValueError:
        first = int(members[0])
        example = f"{self.name(first)} {self.unreadable.get(first, 'is skipped')}"
        return ValueError(f"{what} ({len(members)} tried; {example}); repair or remove them")

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        # Threads suffice: Pillow releases the interpreter's lock while it decodes and resizes.
        return ThreadPoolExecutor(min(_READERS, os.cpu_count() or 1))

    def _try_all(self, indices: np.ndarray) -> list[Tensor | None]:
        return list(self._pool.map(self._try, (int(index) for index in indices)))

    def _try(self, index: int) -> Tensor | None:
        if index in self.unreadable:
            return None
        try:
            return self.read(index)
        except UnreadableImage as error:
            self.unreadable[index] = str(error)
            count = len(self.unreadable)
            if count <= _LOGGED:
                last = " (more are only counted)" if count == _LOGGED else ""
                logger.warning("%s %s; skipped%s", self.name(index), error, last)
            return None

    @cached_property
    def _reserved(self) -> np.ndarray:
        flags = np.zeros(len(self), dtype=bool)
        flags[self.split.reserved] = True
        return flags

    def _stand_in(self, index: int) -> Tensor:
        part = np.flatnonzero(self._reserved == self._reserved[index])
        part = np.roll(part, -np.searchsorted(part, index) - 1)
        same_class = self.labels[part] == self.labels[index]
        held_out = bool(self._reserved[index])
        # Validation does not ask for the class, and of a small one all held-out images may be unreadable.
        candidates = np.concatenate([part[same_class], part[~same_class]]) if held_out else part[same_class]
        for candidate in candidates.tolist():
            image = self._try(candidate)
            if image is not None:
                return image
        if held_out:
            raise self._unusable("no held-out image can be read", candidates)
        name = self.class_names[self.labels[index]]
        raise self._unusable(f"class {name!r} has no training image that can be read", candidates)


@dataclass(frozen=True)
class Split:
    """Indices of the examples to train on and of those to validate on, the same in every command.

    Attributes:
        train: (n,) int64, ascending.
        reserved: (m,) int64, ascending: the examples kept out of training; empty where none can be spared.
    """

    train: np.ndarray
    reserved: np.ndarray

    def __post_init__(self) -> None:
        if not len(self.reserved):
            logger.warning(
                "%d images are too few to hold any out; validation is on the training images",
                len(self.train),
            )

    @classmethod
    def of_flags(cls, reserved: np.ndarray) -> Split:
        """Return the split that (N,) bool flags describe."""
        return cls(np.flatnonzero(~reserved), np.flatnonzero(reserved))

    @property
    def held_out(self) -> np.ndarray:
        """Examples to validate on: the reserved ones, or the training examples if none are reserved."""
        return self.reserved if len(self.reserved) else self.train


def make_split(labels: np.ndarray, num_classes: int) -> Split:
    """Hold out the same share of every class: a quarter, and about 10,000 examples in total at most."""
    share = min(_HELD_OUT_SHARE, _MOST_HELD_OUT / max(1, len(labels)))
    rng = np.random.default_rng(_SPLIT_SEED)
    train, reserved = [], []
    for label in range(num_classes):
        members = rng.permutation(np.flatnonzero(labels == label))
        cut = round(len(members) * share)
        reserved.append(members[:cut])
        train.append(members[cut:])
    return Split(np.sort(np.concatenate(train)), np.sort(np.concatenate(reserved)))


def content_fingerprint(
    class_names: Sequence[str], labels: np.ndarray, names: Iterable[str], sizes: np.ndarray
) -> str:
    """Return the digest of a list of examples, without reading one.

    Args:
        class_names: one name per label.
        labels: (N,) class of each example.
        names: N names, which do not depend on where the data is stored.
        sizes: (N,) bytes of each example.
    """
    parts = "\0".join(class_names), "\0".join(names)
    return digest(*parts, np.asarray(labels, dtype="<i8").tobytes(), np.asarray(sizes, dtype="<i8").tobytes())


Key = TypeVar("Key", int, tuple[int, ...])
Value = TypeVar("Value")


class Prefetcher(Generic[Key, Value]):
    """Calls `read(key)` in a thread of its own for keys announced ahead.

    A torch DataLoader would do the same in worker processes, but then `ImageSource.unreadable` would be
    filled in their copies of the source, and images would be sent between processes that threads share.

    Args:
        read: what to call for a key. Keys are asked for in ascending order.
    """

    def __init__(self, read: Callable[[Key], Value]) -> None:
        self._read: Callable[[Key], Value] = read
        self._pending: dict[Key, Future[Value]] = {}
        self._thread = ThreadPoolExecutor(1)

    def get(self, key: Key, following: Key | None = None) -> Value:
        """Return `read(key)`, and start reading the key that will be asked for later."""
        future = self._pending.pop(key, None)
        value = self._read(key) if future is None else future.result()
        # Keys that were passed over, as after a jump to another step, would keep their batch forever.
        self._pending = {other: future for other, future in self._pending.items() if other > key}
        if following is not None:
            self._pending[following] = self._thread.submit(self._read, following)
        return value

    def close(self) -> None:
        """Stop reading; what was announced and not yet begun is dropped."""
        self._thread.shutdown(wait=False, cancel_futures=True)
