"""Writing a folder of codes (`mvar tokenize`); `folder` describes its files.

Shard i holds the same examples whoever writes it, so any number of processes produces the same bytes:
process r of n writes every n-th shard, and whoever finds all of them complete writes the index. After a
kill, shards that are intact are kept and the others computed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mvar_models.data.source import ImageSource, Prefetcher
from mvar_models.distributed import Processes
from mvar_models.files import SettingsMismatch, claim, compare, digest, write_text
from mvar_models.networks.vqvae import VQVAE
from mvar_models.records import read_record
from mvar_models.sampling.progress import Meter, counting
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
    Shard,
    Unreadable,
    check_shard,
    is_written,
    read_index,
    vqvae_settings,
    write_array,
    write_shard,
)

logger = logging.getLogger(__name__)

SHARD_SIZE = 2048


@dataclass(frozen=True)
class Written:
    """Result of one call of `TokenWriter.write`.

    Attributes:
        complete: whether the whole folder is finished now.
        made: images encoded by this call; others were there already.
    """

    complete: bool
    made: int


class TokenWriter:
    """A folder of codes that is being written.

    Args:
        vqvae: encodes the images.
        source: the images.
        folder: created if it does not exist.
        names: of the data and of the VQVAE, for people to read; they are not compared.
        num_variants: per image; default: as many as `default_num_variants` says.
        seed: of variants that are not mirrors.
        shard_size: examples per shard.

    Attributes:
        settings: all that decides the bytes of the folder.

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
        self._all_stamps = source.stamps
        check_num_variants(self.num_variants, source.mirror_safe)
        if shard_size < 1:
            raise ValueError(f"shard_size must be at least 1, got {shard_size}")
        self.settings: dict[str, Any] = {
            "format": FORMAT,
            **vqvae_settings(vqvae),
            "data_fingerprint": source.fingerprint,
            "class_names": list(source.class_names),
            "mirror_safe": source.mirror_safe,
            "num_variants": self.num_variants,
            "seed": seed,
            "shard_size": shard_size,
        }
        examples = np.arange(len(source))
        starts = range(0, len(examples), shard_size)
        self._ranges = [examples[start : start + shard_size] for start in starts]
        self._shards = [folder / f"shard-{number:05d}.npy" for number in range(len(starts))]
        if self.finished:
            index = read_index(folder)
            compare(folder, {key: getattr(index, key) for key in self.settings}, self.settings, "codes")
            self._check_images(index)
        else:
            claim(folder / SETTINGS, self.settings, "codes")

    @property
    def finished(self) -> bool:
        return (self.folder / INDEX).exists()

    def write(
        self,
        processes: Processes | None = None,
        *,
        batch_size: int | None = None,
    ) -> Written:
        """Write this process's shards, and the index if all shards are complete.

        Args:
            processes: this process's place among those that share the work; default: it is alone.
            batch_size: images encoded at a time; default: `images_per_batch`. Another batch size may change
                a rare code whose two nearest vectors are equally far.

        Raises:
            ValueError: no image of a class can be read.
        """
        batch_size = images_per_batch(self.vqvae) if batch_size is None else batch_size
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if self.finished:
            return Written(complete=True, made=0)
        processes = processes or Processes()
        mine = range(processes.rank, len(self._shards), processes.world_size)
        missing = [number for number in mine if not self._intact(number)]
        total = sum(len(self._ranges[number]) for number in missing)
        # Read before they are encoded: what changes in between must not count as encoded.
        contents = Prefetcher(lambda number: self._content(self._ranges[number]))
        with closing(contents), counting("encoding", total) as meter:
            for number, following in zip(missing, [*missing[1:], None]):
                self._write_shard(number, contents.get(number, following), batch_size, meter)
        if all(map(is_written, self._shards)):
            self._write_index([check_shard(shard) for shard in self._shards])
        return Written(self.finished, total)

    def _write_shard(self, number: int, content: str, batch_size: int, meter: Meter) -> None:
        source, indices, parts, kept = self.source, self._ranges[number], [], []
        for positions, codes in self.encoded(indices, batch_size):
            parts.append(codes)
            kept.append(indices[positions])
            meter.advance(min(batch_size, len(indices) - (len(parts) - 1) * batch_size))
        lost = np.setdiff1d(indices, np.concatenate(kept)).tolist()
        unreadable = [Unreadable(i, source.name(i), source.unreadable[i]) for i in lost]
        codes = np.concatenate(parts, axis=1)
        write_shard(self._shards[number], codes, unreadable, self._stamps(indices), content)

    def encoded(self, indices: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield per batch the readable positions in `indices`, (m,), and their codes (num_variants, m, L)."""
        return encode_batches(
            self.vqvae, self.source, indices, num_variants=self.num_variants, seed=self.seed,
            batch_size=batch_size,
        )  # fmt: skip

    def _intact(self, number: int) -> bool:
        """Return whether a shard is written, and its images are what they were."""
        path = self._shards[number]
        if not is_written(path):
            return False
        try:
            shard = check_shard(path)
        except ValueError as error:
            logger.warning("%s; it is recomputed", error)
            return False
        if not self._changed(shard, self._ranges[number]):
            return True
        logger.warning("%s: its images have changed since; it is recomputed", path)
        return False

    def _changed(self, shard: Shard, indices: np.ndarray) -> bool:
        """Return whether images have changed since; those that were written again are read to tell."""
        return shard.stamps != self._stamps(indices) and shard.content != self._content(indices)

    def _stamps(self, indices: np.ndarray) -> str:
        return digest(self._all_stamps[indices].tobytes()) if self._all_stamps.any() else ""

    def _content(self, indices: np.ndarray) -> str:
        return self.source.content(indices) if self._all_stamps.any() else ""

    def _check_images(self, index: Index) -> None:
        """Compare images that were written again since they were encoded, byte by byte and once.

        Raises:
            SettingsMismatch: some are not what they were.
        """
        stamps = [self._stamps(indices) for indices in self._ranges]
        pairs = enumerate(zip(index.shards, stamps))
        again = [number for number, (shard, now) in pairs if shard.stamps != now]
        if not again:
            return
        logger.warning(
            "images in %d of %d shards of %s were written again since they were encoded, or are a copy; "
            "comparing their bytes",
            len(again),
            len(index.shards),
            self.folder,
        )
        changed = [
            index.shards[number].file
            for number in again
            if self._changed(index.shards[number], self._ranges[number])
        ]
        if changed:
            raise SettingsMismatch(
                f"{self.folder} holds codes of images that have changed since, under the same names, in "
                f"{len(changed)} shards ({', '.join(changed[:3])}); encode into another folder, or remove "
                f"{self.folder / INDEX} to encode these again",
                ["content of the images"],
            )
        values = read_record(self.folder / INDEX, dict[str, Any])
        for number in again:
            values["shards"][number]["stamps"] = stamps[number]
        with suppress(OSError):  # a folder that others own is compared every time
            write_text(self.folder / INDEX, json.dumps(values, indent=2) + "\n")

    def _write_index(self, shards: list[Shard]) -> None:
        examples = self._examples([entry.example for shard in shards for entry in shard.unreadable])
        check_classes(self.source, examples["label"])
        index = {
            **self.settings,
            "data": self.names[0],
            "vqvae": self.names[1],
            "skipped": self.source.skipped,
            "examples": asdict(write_array(self.folder / EXAMPLES, examples)),
            "shards": [asdict(shard) for shard in shards],
        }
        write_text(self.folder / INDEX, json.dumps(index, indent=2) + "\n")
        (self.folder / SETTINGS).unlink(missing_ok=True)

    def _examples(self, unreadable: list[int]) -> np.ndarray:
        """Return the rows of examples.npy: all examples of the source but the unreadable ones."""
        numbers = np.setdiff1d(np.arange(len(self.source)), np.array(unreadable, dtype=np.int64))
        reserved = np.zeros(len(self.source), dtype=bool)
        reserved[self.source.split.reserved] = True
        examples = np.empty(len(numbers), dtype=EXAMPLE_TYPE)
        examples["example"] = numbers
        examples["label"] = self.source.labels[numbers]
        examples["held_out"] = reserved[numbers]
        return examples
