"""One file of the token cache: a safetensors file with the codes of a run of examples, written whole, checked, and read by memory map.

Tensors: codes (copies, n, L) uint16; examples (n,) int32, their numbers in the dataset; labels (n,) int32; held_out (n,) uint8. The header
also carries a SHA-256 of the tensors, so that a shard left by a killed run can be trusted or made again without any other record.

Codes are read with numpy.memmap at the header's offset: a batch is one indexing operation per shard, where the safetensors library's slices
cost a call and a copy per picture.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from mvar_models.files import replacing

_TYPES = {
    "codes": ("U16", "<u2"),
    "examples": ("I32", "<i4"),
    "labels": ("I32", "<i4"),
    "held_out": ("U8", "u1"),
}
_NOTE = "mvar"  # one entry of metadata, as safetensors writes several in no fixed order


@dataclass(frozen=True)
class Shard:
    """What the index says of a shard. sha256: of the file. pictures: examples in it. unreadable: name -> reason of those left out."""

    file: str
    sha256: str
    bytes: int
    pictures: int
    unreadable: Mapping[str, str]


def write_shard(path: Path, tensors: Mapping[str, np.ndarray], unreadable: Mapping[str, str]) -> None:
    """Complete or not at all; the same bytes for the same contents."""
    stored = {name: np.ascontiguousarray(tensors[name], dtype=kind) for name, (_, kind) in _TYPES.items()}
    note = json.dumps({"sha256": _content_hash(stored), "unreadable": dict(unreadable)})
    with replacing(path) as temporary:
        save_file(stored, temporary, metadata={_NOTE: note})


def check_shard(path: Path) -> Shard:
    """Read a shard through; ValueError if it is not what was written."""
    data = path.read_bytes()
    try:
        header, start = _header(data[:8], data[8 : 8 + _header_length(data[:8])])
        note = json.loads(header["__metadata__"][_NOTE])
        stored = {name: _tensor(header, start, name, data) for name in _TYPES}
        intact = _content_hash(stored) == note["sha256"]
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise ValueError(f"{path} is not a complete shard of codes ({error})") from None
    if not intact:
        raise ValueError(
            f"{path} is damaged: its contents do not have the checksum that they were written with"
        )
    return Shard(
        path.name, hashlib.sha256(data).hexdigest(), len(data), len(stored["labels"]), note["unreadable"]
    )


def file_hash(path: Path) -> str:
    """SHA-256 of a file, as `sha256sum` prints it."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def map_tensor(path: Path, name: str) -> np.ndarray:
    """One of a shard's tensors, mapped into memory and not read."""
    with path.open("rb") as file:
        first = file.read(8)
        header, start = _header(first, file.read(_header_length(first)))
    kind, shape, begin = _entry(header, name)
    if 0 in shape:
        return np.empty(shape, dtype=kind)
    return np.memmap(path, dtype=kind, mode="r", offset=start + begin, shape=shape)


class ShardedCodes:
    """Codes (copies, N, L) that lie in shards; a shard is opened when the first of its examples is asked for.

    Args:
        files: the shards, in order.
        counts: examples in each.
        shape: copies and L.
        which: rows of all shards together that count as 0 .. N - 1 here.
    """

    def __init__(
        self, files: Sequence[Path], counts: Sequence[int], shape: tuple[int, int], which: np.ndarray
    ) -> None:
        self._files = tuple(files)
        self._ends = np.cumsum(counts)
        self._starts = self._ends - np.asarray(counts)
        self._which = which
        self._maps: dict[int, np.ndarray] = {}
        self.shape = (shape[0], len(which), shape[1])

    def __getitem__(self, key: tuple[Any, Any]) -> np.ndarray:
        copies, members = key
        rows = self._which[members]
        copies = np.broadcast_to(copies, rows.shape)
        shards = np.searchsorted(self._ends, rows, side="right")
        out = np.empty((len(rows), self.shape[2]), dtype=np.uint16)
        for shard in np.unique(shards).tolist():
            mine = shards == shard
            out[mine] = self._map(shard)[copies[mine], rows[mine] - self._starts[shard]]
        return out

    def _map(self, shard: int) -> np.ndarray:
        if shard not in self._maps:
            self._maps[shard] = map_tensor(self._files[shard], "codes")
        return self._maps[shard]


def _content_hash(stored: Mapping[str, np.ndarray]) -> str:
    total = hashlib.sha256()
    for name in _TYPES:
        total.update(repr((name, stored[name].shape)).encode() + stored[name].tobytes())
    return total.hexdigest()


def _header_length(first: bytes) -> int:
    (length,) = struct.unpack("<Q", first)
    if length > 1 << 26:
        raise ValueError(f"a header of {length} bytes")
    return length


def _header(first: bytes, text: bytes) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where its tensors begin."""
    if len(text) != _header_length(first):
        raise ValueError("cut short in its header")
    return json.loads(text), 8 + len(text)


def _entry(header: dict[str, Any], name: str) -> tuple[str, tuple[int, ...], int]:
    code, kind = _TYPES[name]
    entry = header[name]
    if entry["dtype"] != code:
        raise ValueError(f"{name} is {entry['dtype']}, expected {code}")
    return kind, tuple(entry["shape"]), entry["data_offsets"][0]


def _tensor(header: dict[str, Any], start: int, name: str, data: bytes) -> np.ndarray:
    kind, shape, begin = _entry(header, name)
    return np.frombuffer(data, dtype=kind, count=int(np.prod(shape)), offset=start + begin).reshape(shape)
