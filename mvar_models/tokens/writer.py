"""Writing a folder of codes (`mvar tokenize`); `folder` describes its files.

Shard i holds the same examples whoever writes it, so any number of processes produces the same bytes:
process r of n writes every n-th shard, and whoever finds all of them complete writes the index. After a
kill, shards that are intact are kept and the others computed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mvar_models.data.fingerprint import digest
from mvar_models.data.prefetch import Prefetcher
from mvar_models.data.source import ImageSource
from mvar_models.files import OtherSettings, claim, compare, write_text
from mvar_models.networks.vqvae import VQVAE
from mvar_models.records import read_record
from mvar_models.sampling.labels import composed
from mvar_models.tokens.encode import (
    check_classes,
    check_num_variants,
    default_num_variants,
    encode_batches,
    images_per_batch,
)
from mvar_models.tokens.folder import (
    EXAMPLE_TYPE,
    EXAMPLES,
    FORMAT,
    INDEX,
    SETTINGS,
    Index,
    IndexedFile,
    read_index,
    vqvae_settings,
)
from mvar_models.tokens.format_1 import FORMAT_1
from mvar_models.tokens.shard import Shard, Unreadable, check_shard, is_written, write_array, write_shard

logger = logging.getLogger(__name__)

SHARD_SIZE = 2048
Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Written:
    """What one call of `TokenWriter.write` achieved.

    Attributes:
        complete: whether the whole folder is finished now.
        made: images encoded by this call; others were there already.
    """

    complete: bool
    made: int


@dataclass(frozen=True)
class _Begun:
    """What decides, of an unfinished folder's settings, whether this version may go on."""

    ignores_unknown: ClassVar[bool] = True

    format: str
    class_names: list[str]


class TokenWriter:
    """A folder of codes that is being written.

    Args:
        vqvae: gives the codes.
        source: gives the images.
        folder: created if it does not exist.
        names: of the data and of the VQVAE, for people to read; they are not compared.
        num_variants: per image; default: as many as `default_num_variants` says.
        seed: of variants that are not mirrors.
        shard_size: examples per shard.

    Raises:
        ValueError: the folder belongs to other data, another VQVAE or other settings.
    """

    def __init__(
        self,
        vqvae: VQVAE,
        source: ImageSource,
        folder: Path,
        *,
        names: tuple[str, str] = ("", ""),
        num_variants: int | None = None,
        seed: int = 0,
        shard_size: int = SHARD_SIZE,
    ) -> None:
        self.vqvae, self.source, self.folder, self.names = vqvae, source, folder, names
        self.num_variants = default_num_variants(source.mirror_safe) if num_variants is None else num_variants
        self.seed = seed
        self.shard_size = shard_size
        self._all_stamps = source.stamps
        check_num_variants(self.num_variants, source.mirror_safe)
        if shard_size < 1:
            raise ValueError(f"shard_size must be at least 1, got {shard_size}")
        self.settings = self._settings()
        self.finished = (folder / INDEX).exists()
        if self.finished:
            index = read_index(folder)
            # The codes do not depend on the format, so a finished folder of an older one will do.
            found = {**{key: getattr(index, key) for key in self.settings}, "format": FORMAT}
            _check_order(folder, index.class_names, source.class_names)
            compare(folder, found, self.settings, "codes")
            self._check_images(index)
        else:
            if (folder / SETTINGS).is_file():
                begun = read_record(folder / SETTINGS, _Begun)
                _check_order(folder, begun.class_names, source.class_names)
                if begun.format == FORMAT_1:
                    raise ValueError(
                        f"{folder} was begun by version 0.1 and is not complete; "
                        "remove it and run the command again"
                    )
            claim(folder / SETTINGS, self.settings, "codes")

    def write(
        self,
        *,
        batch_size: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        report: Report | None = None,
    ) -> Written:
        """Write this process's shards, and the index if all shards are complete.

        Args:
            batch_size: images encoded at a time; default: `images_per_batch`. Another batch size may change
                a rare code whose two nearest vectors are equally far.
            rank: which process this is.
            world_size: how many processes there are.
            report: called with the images done and the images to do by this process.

        Raises:
            ValueError: no image of a class can be read.
        """
        batch_size = images_per_batch(self.vqvae) if batch_size is None else batch_size
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if self.finished:
            return Written(complete=True, made=0)
        ranges = self._ranges()
        shards = [self.folder / f"shard-{number:05d}.npy" for number in range(len(ranges))]
        mine = range(rank, len(shards), world_size)
        missing = [number for number in mine if not self._intact(shards[number], ranges[number])]
        total, done = sum(len(ranges[number]) for number in missing), 0
        # Read before they are encoded: what changes in between must not count as encoded.
        contents = Prefetcher(lambda number: self._content(ranges[number]))
        with closing(contents):
            for number, following in zip(missing, [*missing[1:], None]):
                step = None if report is None else lambda count, before=done: report(before + count, total)
                content = contents.get(number, following)
                self._write_shard(shards[number], ranges[number], content, batch_size, step)
                done += len(ranges[number])
        self.finished = all(is_written(shard) for shard in shards)
        if self.finished:
            self._write_index([check_shard(shard) for shard in shards])
        return Written(self.finished or (self.folder / INDEX).exists(), total)

    def _ranges(self) -> list[np.ndarray]:
        """Return the examples of each shard."""
        examples = np.arange(len(self.source))
        return [
            examples[start : start + self.shard_size] for start in range(0, len(examples), self.shard_size)
        ]

    def _write_shard(
        self,
        path: Path,
        indices: np.ndarray,
        content: str,
        batch_size: int,
        report: Callable[[int], None] | None,
    ) -> None:
        source, parts, kept = self.source, [], []
        for positions, codes in encode_batches(
            self.vqvae,
            source,
            indices,
            num_variants=self.num_variants,
            seed=self.seed,
            batch_size=batch_size,
        ):
            parts.append(codes)
            kept.append(indices[positions])
            if report is not None:
                report(min(len(parts) * batch_size, len(indices)))
        lost = np.setdiff1d(indices, np.concatenate(kept)).tolist()
        unreadable = [Unreadable(i, source.name(i), source.unreadable[i]) for i in lost]
        write_shard(path, np.concatenate(parts, axis=1), unreadable, self._stamps(indices), content)

    def _intact(self, path: Path, indices: np.ndarray) -> bool:
        """Return whether a shard is written, and its images are what they were."""
        if not is_written(path):
            return False
        try:
            shard = check_shard(path)
        except ValueError as error:
            logger.warning("%s; it is recomputed", error)
            return False
        if not self._changed(shard, indices):
            return True
        logger.warning("%s: its images have changed since; it is recomputed", path)
        return False

    def _changed(self, shard: Shard | IndexedFile, indices: np.ndarray) -> bool:
        """Return whether images have changed since; those that were written again are read to tell."""
        return shard.stamps != self._stamps(indices) and shard.content not in ("", self._content(indices))

    def _stamps(self, indices: np.ndarray) -> str:
        return digest(self._all_stamps[indices].tobytes()) if self._all_stamps.any() else ""

    def _content(self, indices: np.ndarray) -> str:
        return self.source.content(indices) if self._all_stamps.any() else ""

    def _check_images(self, index: Index) -> None:
        """Compare images that were written again since they were encoded, byte by byte and once.

        Raises:
            OtherSettings: some are not what they were.
        """
        if self._all_stamps.any() and not any(shard.content for shard in index.shards):
            logger.warning(
                "%s is of an earlier version: its images are compared by names and sizes alone", self.folder
            )
        ranges = dict(enumerate(self._ranges()))
        again = {
            number: shard
            for number, shard in enumerate(index.shards)
            if shard.content and number in ranges and shard.stamps != self._stamps(ranges[number])
        }
        if not again:
            return
        logger.warning(
            "images in %d of %d shards of %s were written again since they were encoded, or are a copy; "
            "comparing their bytes",
            len(again),
            len(index.shards),
            self.folder,
        )
        changed = [shard.file for number, shard in again.items() if self._changed(shard, ranges[number])]
        if changed:
            raise OtherSettings(
                f"{self.folder} holds codes of images that have changed since, under the same names, in "
                f"{len(changed)} shards ({', '.join(changed[:3])}); encode into another folder, or remove "
                f"{self.folder / INDEX} to encode these again",
                ["content of the images"],
            )
        values = read_record(self.folder / INDEX, dict[str, Any])
        for number in again:
            values["shards"][number]["stamps"] = self._stamps(ranges[number])
        with suppress(OSError):  # a folder that others own is compared every time
            write_text(self.folder / INDEX, json.dumps(values, indent=2) + "\n")

    def _settings(self) -> dict[str, Any]:
        """Return everything that decides the folder's bytes, under the names that version 0.1 gave it."""
        return {
            "format": FORMAT,
            **vqvae_settings(self.vqvae),
            "data_fingerprint": self.source.fingerprint,
            "class_names": list(self.source.class_names),
            "flips": self.source.mirror_safe,
            "copies": self.num_variants,
            "seed": self.seed,
            "shard_size": self.shard_size,
        }

    def _write_index(self, shards: list[Shard]) -> None:
        lost = [entry for shard in shards for entry in shard.unreadable]
        examples = self._examples(np.array([entry.example for entry in lost], dtype=np.int64))
        check_classes(self.source, examples["label"])
        size, sha256 = write_array(self.folder / EXAMPLES, examples)
        index = {
            **self.settings,
            "data": self.names[0],
            "vqvae": self.names[1],
            "pictures": sum(shard.num_images for shard in shards),
            "left_out": {**self.source.skipped, **{entry.name: entry.reason for entry in lost}},
            "examples": {"file": EXAMPLES, "sha256": sha256, "bytes": size},
            "shards": [
                {
                    "file": shard.file,
                    "sha256": shard.sha256,
                    "bytes": shard.bytes,
                    "pictures": shard.num_images,
                    "stamps": shard.stamps,
                    "content": shard.content,
                }
                for shard in shards
            ],
        }
        write_text(self.folder / INDEX, json.dumps(index, indent=2) + "\n")
        (self.folder / SETTINGS).unlink(missing_ok=True)

    def _examples(self, unreadable: np.ndarray) -> np.ndarray:
        """Return the rows of examples.npy: all examples of the source but the unreadable ones."""
        numbers = np.setdiff1d(np.arange(len(self.source)), unreadable)
        reserved = np.zeros(len(self.source), dtype=bool)
        reserved[self.source.split.reserved] = True
        examples = np.empty(len(numbers), dtype=EXAMPLE_TYPE)
        examples["example"] = numbers
        examples["label"] = self.source.labels[numbers]
        examples["held_out"] = reserved[numbers]
        return examples


def _check_order(folder: Path, found: Sequence[str], names: Sequence[str]) -> None:
    """Refuse codes whose classes have other numbers, which versions before 0.2 gave to some names."""
    before = [composed(name) for name in found]
    if before != list(names) and sorted(before) == sorted(names):
        raise OtherSettings(
            f"{folder} numbers the same classes in another order ({', '.join(before[:3])}, ... instead of "
            f"{', '.join(names[:3])}, ...), as versions before 0.2 did; encode into another folder",
            ["order of the classes"],
        )
