"""Making a folder of codes (`mvar tokenize`); what it holds is described in `token_cache`.

Shard i holds the same examples whoever makes it, so any number of processes writes the same bytes: process r of n makes every n-th shard, and
whoever finds all of them writes the index. A run that was killed goes on with the shards that are missing; those that are there are checked.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mvar_models.data.source import ImageSource
from mvar_models.files import claim, compare, write_text
from mvar_models.networks.vqvae import VQVAE
from mvar_models.tokens.encode import (
    check_classes,
    check_num_variants,
    default_num_variants,
    encode_batches,
    images_per_batch,
)
from mvar_models.tokens.folder import FORMAT, INDEX, SETTINGS, read_index, vqvae_settings
from mvar_models.tokens.shard import Shard, check_shard, map_tensor, write_shard

logger = logging.getLogger(__name__)

SHARD_SIZE = 2048
Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Written:
    """complete: whether all shards are there now. made: pictures encoded by this call (others were there already)."""

    complete: bool
    made: int


class TokenWriter:
    """A folder of codes in the making.

    Args:
        names: of the data and of the VQVAE, for people to read; they are not compared.
        num_variants: per image; default: the picture and its mirror where classes allow one, else the picture.
        seed: of variants that are not mirrors.
        shard_size: examples a shard.

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
        check_num_variants(self.num_variants, source.mirror_safe)
        if shard_size < 1:
            raise ValueError(f"shard_size must be at least 1, got {shard_size}")
        self.settings = self._settings()
        self.finished = (folder / INDEX).exists()
        if self.finished:
            index = read_index(folder)
            compare(folder, {key: index[key] for key in self.settings}, self.settings, "codes")
        else:
            claim(folder / SETTINGS, self.settings, "codes")

    def write(
        self,
        *,
        batch_size: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        report: Report | None = None,
    ) -> Written:
        """Make this process's shards, and the index when all are there.

        Args:
            batch_size: pictures encoded at a time; default: `images_per_batch`. Another one may change a code in very
                many, where two are equally near.
            rank, world_size: indices process of how many this is.
            report: called with pictures done and pictures to do by this process.

        Raises:
            ValueError: no picture of a class can be read.
        """
        batch_size = images_per_batch(self.vqvae) if batch_size is None else batch_size
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if self.finished:
            return Written(complete=True, made=0)
        starts = range(0, len(self.source), self.shard_size)
        shards = [self.folder / f"shard-{number:05d}.safetensors" for number in range(len(starts))]
        missing = [number for number in range(rank, len(shards), world_size) if not _intact(shards[number])]
        ranges = [
            np.arange(starts[number], min(starts[number] + self.shard_size, len(self.source)))
            for number in missing
        ]
        total, done = sum(map(len, ranges)), 0
        for number, indices in zip(missing, ranges):
            step = None if report is None else lambda count, before=done: report(before + count, total)
            self._write_shard(shards[number], indices, batch_size, step)
            done += len(indices)
        self.finished = all(shard.exists() for shard in shards)
        if self.finished:
            self._write_index([check_shard(shard) for shard in shards])
        return Written(self.finished or (self.folder / INDEX).exists(), total)

    def _write_shard(
        self, path: Path, indices: np.ndarray, batch_size: int, report: Callable[[int], None] | None
    ) -> None:
        source, parts, kept = self.source, [], []
        for positions, codes in encode_batches(
            self.vqvae, source, indices, num_variants=self.num_variants, seed=self.seed, batch_size=batch_size
        ):
            parts.append(codes)
            kept.append(indices[positions])
            if report is not None:
                report(min(len(parts) * batch_size, len(indices)))
        examples = np.concatenate(kept)
        tensors = {
            "codes": np.concatenate(parts, axis=1),
            "examples": examples,
            "labels": source.labels[examples],
            "held_out": self._held_out[examples],
        }
        lost = np.setdiff1d(indices, examples).tolist()
        write_shard(path, tensors, {source.name(i): source.unreadable[i] for i in lost})

    @cached_property
    def _held_out(self) -> np.ndarray:
        flags = np.zeros(len(self.source), dtype=bool)
        flags[self.source.split.reserved] = True
        return flags

    def _settings(self) -> dict[str, Any]:
        """Everything that decides the folder's bytes."""
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
        check_classes(
            self.source, np.concatenate([map_tensor(self.folder / shard.file, "labels") for shard in shards])
        )
        lost = {name: reason for shard in shards for name, reason in shard.unreadable.items()}
        index = {
            **self.settings,
            "data": self.names[0],
            "vqvae": self.names[1],
            "pictures": sum(shard.pictures for shard in shards),
            "left_out": {**self.source.skipped, **lost},
            "shards": [
                {key: value for key, value in asdict(shard).items() if key != "unreadable"}
                for shard in shards
            ],
        }
        write_text(self.folder / INDEX, json.dumps(index, indent=2) + "\n")
        for leftover in self.folder.glob(".shard-*"):  # of processes that were killed while writing
            leftover.unlink(missing_ok=True)
        (self.folder / SETTINGS).unlink(missing_ok=True)


def _intact(path: Path) -> bool:
    if not path.exists():
        return False
    try:
        check_shard(path)
    except ValueError as error:
        logger.warning("%s; made again", error)
        return False
    return True
