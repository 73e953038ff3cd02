"""Shards of a folder of codes: .npy files read by memory map, each with a record that it is whole.

shard-00000.npy    codes (num_variants, n, L) uint16 of the readable ones among one range of examples
shard-00000.json   its SHA-256, the examples that could not be read, and what tells that images have changed

The record is written last. A shard counts if its bytes have the recorded checksum, so shards left by a
killed process need no other proof.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mvar_models.data.arrays import read_npy
from mvar_models.files import file_digest, replacing, write_text
from mvar_models.records import FileName, read_record
from mvar_models.tokens.token_set import Indices

# Each is a map, of which Linux gives a process some 65,000.
_MOST_OPEN = 4096


@dataclass(frozen=True)
class Unreadable:
    """An example without codes.

    Attributes:
        example: its number in the dataset.
        name: what its source calls it.
        reason: why it cannot be read.
    """

    example: int
    name: str
    reason: str


@dataclass(frozen=True)
class Shard:
    """One shard, as its record describes it.

    Attributes:
        file: name of the .npy file.
        sha256: of the file.
        bytes: size of the file.
        num_images: examples with codes.
        unreadable: the other examples of its range.
        stamps: digest of the stamps of all images of its range; "" for images that cannot change.
        content: digest of their bytes.
    """

    file: FileName
    sha256: str
    bytes: int
    num_images: int
    unreadable: tuple[Unreadable, ...]
    stamps: str = ""
    content: str = ""


def write_shard(
    path: Path, codes: np.ndarray, unreadable: Sequence[Unreadable], stamps: str = "", content: str = ""
) -> None:
    """Write a shard that counts completely or not at all; the same arguments give the same bytes."""
    size, sha256 = write_array(path, np.ascontiguousarray(codes, dtype="<u2"))
    shard = Shard(path.name, sha256, size, codes.shape[1], tuple(unreadable), stamps, content)
    write_text(_record(path), json.dumps(asdict(shard), indent=2) + "\n")


def write_array(path: Path, array: np.ndarray) -> tuple[int, str]:
    """Write an .npy file that appears complete or not at all; return its size in bytes and its SHA-256."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    # Not np.save to the file itself: on a full disk it only says how many values it could not write.
    content = buffer.getvalue()
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return len(content), hashlib.sha256(content).hexdigest()


def is_written(path: Path) -> bool:
    """Return whether a shard has its record; whether it is intact takes `check_shard` to tell."""
    return _record(path).is_file()


def check_shard(path: Path) -> Shard:
    """Read a shard through and compare it with its record.

    Raises:
        ValueError: it is not what was written.
    """
    try:
        shard = read_record(_record(path), Shard)
        actual = file_digest(path)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"{path} is not a complete shard of codes ({error})") from None
    if actual != shard.sha256:
        raise ValueError(f"{path} is damaged: its SHA-256 is not the recorded one")
    return shard


class ShardedCodes:
    """Codes (num_variants, N, L) in shards, each opened when first read.

    Args:
        files: the shards, in order.
        counts: images in each.
        shape: num_variants and L.
        indices: (N,) positions in the concatenation of all shards, which become members 0 .. N - 1.
        vocab_size: number of codes.
    """

    def __init__(
        self,
        files: Sequence[Path],
        counts: Sequence[int],
        shape: tuple[int, int],
        indices: np.ndarray,
        vocab_size: int = 1 << 16,
    ) -> None:
        self._files = tuple(files)
        self._ends = np.cumsum(counts)
        self._starts = self._ends - np.asarray(counts)
        self._indices = indices
        self._vocab_size = vocab_size
        self._opened: dict[int, Any] = {}
        self._shape = (shape[0], len(indices), shape[1])

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    def __getitem__(self, key: tuple[Indices, np.ndarray]) -> np.ndarray:
        variants, members = key
        rows = self._indices[members]
        variants = np.broadcast_to(variants, rows.shape)
        shards = np.searchsorted(self._ends, rows, side="right")
        out = np.empty((len(rows), self._shape[2]), dtype=np.uint16)
        # One indexing operation per shard: a batch of 256 would otherwise take 256.
        for shard in np.unique(shards).tolist():
            mine = shards == shard
            if shard not in self._opened:
                if len(self._opened) == _MOST_OPEN:
                    del self._opened[next(iter(self._opened))]
                self._opened[shard] = self._open(shard)
            codes = self._read(self._opened[shard], variants[mine], rows[mine] - self._starts[shard])
            if codes.max() >= self._vocab_size:
                raise ValueError(
                    f"{self._files[shard]} is damaged: it holds the code {codes.max()}, the VQVAE has "
                    f"{self._vocab_size}; `mvar tokenize --verify` tells what else is"
                )
            out[mine] = codes
        return out

    def _open(self, shard: int) -> Any:
        """Open a shard for `_read`, without keeping a file open."""
        shape = (self._shape[0], int(self._ends[shard] - self._starts[shard]), self._shape[2])
        return read_npy(self._files[shard], np.dtype("<u2"), shape)

    def _read(self, opened: Any, variants: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Read (n, L) codes of one shard."""
        return np.asarray(opened[variants, rows])


def _record(path: Path) -> Path:
    return path.with_suffix(".json")
