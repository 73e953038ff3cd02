"""Read tensors from untrusted files without executing code, and write them; invalid files raise one line.

Formats are safetensors, and `torch.load(weights_only=True)` with NumPy's numbers and argparse's Namespace
allowed, which hold values only and which training programs like to keep beside their weights. Files are
mapped into memory, not copied, wherever their format allows.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mvar_models.devices import is_out_of_memory
from mvar_models.files import replacing
from mvar_models.records import FileName, read_record
from mvar_models.registry import ARCHITECTURES, marked

logger = logging.getLogger(__name__)

# How the index of a model in several files ends, which Hugging Face's libraries write from 5 GB on.
INDEX_SUFFIX = ".index.json"
# Where model.safetensors notes which config.json it was saved with.
CONFIG_DIGEST = "config_sha256"
# Entries under which wrappers keep a model, besides those of the released programs (`released_entry` of the
# registry), and under which they keep its moving average.
_WRAPPER_ENTRIES = ("trainer", "state_dict", "model", "model_state_dict", "module", "net", "weights")
_AVERAGES = ("ema", "model_ema", "ema_model", "state_dict_ema", "ema_state_dict", "params_ema", "average")
# How torch.save began a file before PyTorch 1.6: a pickled ten-byte number.
_LEGACY_MAGIC = b"\x80\x02\x8a\x0a"
# What DataParallel, compile, FSDP, checkpointing and Lightning put into the names of what they wrap.
_WRAPPER = re.compile(
    r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)
# What a program may call its model, as the first part of all names.
_OUTER = ({"model"}, {"net"}, {"ema_model"})


@dataclass(frozen=True)
class Contents:
    """What a checkpoint file holds.

    Attributes:
        state: Tensors, without wrappers and prefixes.
        kind: Architecture that the released program's entry names; None for a bare state dict.
        has_vqvae: Whether a VQVAE lies beside the transformer.
    """

    state: dict[str, Tensor]
    kind: str | None
    has_vqvae: bool


def contents_of(values: Any, path: Path, kind: str = "") -> Contents:
    """Find the state dict among the values that `read_values` returned.

    Args:
        values: What the file holds.
        path: The file, for error messages.
        kind: Architecture to take where a training program's file holds several networks; "" is the
            transformer.

    Raises:
        ValueError: the values hold no model; the message says what they are.
    """
    rows = [row for row in ARCHITECTURES.values() if row.released_entry is not None]
    # The kind asked for comes first, and the VQVAE, which lies beside the transformer, last.
    ordered = sorted(rows, key=lambda row: (row.name != kind, not row.is_generator))
    entries = [str(row.released_entry) for row in ordered if row.is_generator or row.name == kind]
    entries += [
        *_WRAPPER_ENTRIES,
        *(str(row.released_entry) for row in ordered if not row.is_generator),
        *_AVERAGES,
    ]
    drawn_as, has_vqvae = None, False
    while isinstance(values, dict):
        held = [row for row in rows if row.released_entry in values]
        drawn_as = drawn_as or next((row.name for row in held if row.is_generator), None)
        has_vqvae = has_vqvae or any(not row.is_generator for row in held)
        inner = [name for name in entries if _may_hold_tensors(values.get(name))]
        if not inner:
            break
        averages = [name for name in inner[1:] if name in _AVERAGES]
        if averages and kind:
            logger.warning("%s: took %r, not the average in %r beside it", path, inner[0], averages[0])
        values = values[inner[0]]
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, not a state dict")
    state = _unwrapped({name: value for name, value in values.items() if isinstance(value, Tensor)}, path)
    if not state and "param_groups" in values:
        raise ValueError(
            f"{path} holds an optimizer's state without a model; take the checkpoint written with it"
        )
    if not state:
        names = ", ".join(map(str, list(values)[:8])) or "none"
        raise ValueError(f"{path} holds no model: its entries are {names}")
    # A program may keep its model under the entry of the program that it was made from.
    row = marked(state)
    return Contents(state, drawn_as if row is None else row.name, has_vqvae)


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file; see `read_values` and `contents_of` for the errors."""
    return contents_of(read_values(path), path).state


def _may_hold_tensors(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(entry, Tensor | dict) for entry in value.values())


def _unwrapped(tensors: Mapping[Any, Tensor], path: Path) -> dict[str, Tensor]:
    """Return tensors under the names of the model itself, without the counters of those who averaged it."""
    state: dict[str, Tensor] = {}
    for given, value in tensors.items():
        name = _WRAPPER.sub("", str(given))
        if name in state:
            raise ValueError(f"{path} holds {name} twice, once as {given}; take one of the two models")
        if value.dim() > 0 or "." in name:
            state[name] = value
    if any(name.endswith("flat_param") for name in state):
        raise ValueError(
            f"{path} holds FSDP's flattened weights; save whole ones (StateDictType.FULL_STATE_DICT)"
        )
    while {name.partition(".")[0] for name in state} in _OUTER:
        state = {name.partition(".")[2]: value for name, value in state.items()}
    return state


def config_digest(values: Mapping[str, Any]) -> str:
    """Return what identifies the values of a config.json, however they are written."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def saved_with(path: Path) -> str | None:
    """Return the digest of the configuration that a .safetensors file was saved with, or None."""
    if path.suffix != ".safetensors":
        return None
    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get(CONFIG_DIGEST)


def read_index(path: Path) -> dict[str, list[str]]:
    """Return the names of the tensors in each file that an index of shards names.

    Raises:
        ValueError: it is no such index.
    """
    shards: dict[str, list[str]] = {}
    for name, shard in read_record(path, _Index).weight_map.items():
        shards.setdefault(shard, []).append(name)
    return shards


@dataclass(frozen=True)
class _Index:
    ignores_unknown: ClassVar[bool] = True
    weight_map: Mapping[str, FileName]


def _read_shards(index: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for shard, names in read_index(index).items():
        if not (index.parent / shard).is_file():
            raise FileNotFoundError(f"{index} names {shard}, which is not beside it; copy or download it too")
        read = read_values(index.parent / shard)
        lacking = [name for name in names if not isinstance(read, dict) or name not in read]
        if lacking:
            raise ValueError(f"{index.parent / shard} lacks {lacking[0]}, which {index.name} says it holds")
        tensors.update((name, read[name]) for name in names)
    return tensors


def read_values(path: Path) -> Any:
    """Read a file, or the shards of an index: a state dict, or what a training program wrote around it.

    Raises:
        ValueError: in one line what the file is instead, and what to do.
    """
    if path.name.endswith(INDEX_SUFFIX):
        return _read_shards(path)
    with path.open("rb") as file:
        head = file.read(512)
    _refuse_impostors(path, head)
    if path.suffix == ".safetensors" or head[8:9] == b"{":  # eight bytes of length, then JSON
        try:
            return load_file(path)
        except SafetensorError as error:
            if is_out_of_memory(error):
                raise
            raise ValueError(
                f"{path} is not a complete safetensors file ({error}); download or copy it again"
            ) from None
    archive = zipfile.is_zipfile(path)
    if head.startswith(b"PK") and not archive:
        raise ValueError(
            f"{path} is cut short: it begins as a PyTorch checkpoint, but its end is missing; "
            "download or copy it again"
        )
    if head.startswith(b"\x80") and not head.startswith(_LEGACY_MAGIC):
        raise ValueError(
            f"{path} was refused: a plain pickle, which cannot be read without running code from it; "
            "get the weights as .safetensors"
        )
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(
                path, map_location="cpu", weights_only=True, mmap=archive
            )  # files of before PyTorch 1.6 cannot be mapped
    except Exception as error:  # torch.load raises pickle, zip, EOF and runtime errors alike
        if is_out_of_memory(error):
            raise
        raise ValueError(_why_unreadable(path, str(error).strip() or type(error).__name__)) from None


def save_safetensors(
    state: dict[str, Tensor],
    path: Path,
    dtype: torch.dtype | None = None,
    notes: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write tensors.

    Args:
        state: Tensors by name, on any device.
        path: The .safetensors file to write.
        dtype: Type to convert floating-point tensors to; None keeps theirs.
        notes: Texts to keep in the file's header.
    """
    tensors = {}
    for name, value in state.items():
        value = value.detach().to("cpu")
        if dtype is not None and value.is_floating_point():
            value = value.to(dtype)
        tensors[name] = value.contiguous()
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", **notes})
        if notes:
            _sort_notes(temporary)


def _sort_notes(path: Path) -> None:
    """Order the notes of a .safetensors file, which safetensors writes in a random order, by name."""
    with path.open("rb+") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= length, "the header grew"
        file.seek(8)
        file.write(text.ljust(length))


def _refuse_impostors(path: Path, head: bytes) -> None:
    """Refuse what failed downloads leave behind.

    Args:
        path: The file, for the message.
        head: Its first 512 bytes.

    Raises:
        ValueError: the file is empty, a web page, a Git LFS pointer or a text.
    """
    if not head:
        raise ValueError(f"{path} is empty; download or copy it again")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ValueError(
            f"{path} is a web page, probably an error message saved in a checkpoint's place; "
            "download it again"
        )
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(
            f"{path} is a Git LFS pointer, the checkpoint itself was not fetched; "
            "run `git lfs pull` or download it from the Hub"
        )
    if _is_text(head):
        raise ValueError(
            f"{path} is a text file, not a checkpoint; "
            "name the .safetensors or .pth file that holds the weights"
        )


def _is_text(head: bytes) -> bool:
    return all(32 <= byte < 127 or byte in b"\t\n\r" for byte in head)


def _why_unreadable(path: Path, error: str) -> str:
    refused = re.search(r"GLOBAL (\S+)", error)
    if refused:
        return (
            f"{path} was refused: it calls {refused[1]}, and files are read without running code from them; "
            "get the weights as .safetensors"
        )
    # torch's own text goes on about reading such files with weights_only=False, which is the last thing to
    # do.
    told = re.search(r"WeightsUnpickler error:\s*(.+)", error)
    # Pickle and struct speak of Python's classes and buffers where bytes are damaged or missing.
    reason = re.sub(r"<class '([\w.]+)'>", r"\1", told[1] if told else error.splitlines()[0])
    reason = re.sub(r"unpack requires a buffer of \d+ bytes", "bytes are missing", reason)
    return (
        f"{path} cannot be read as a PyTorch checkpoint ({reason.strip()[:200]}); download or copy it again"
    )


def _harmless() -> list[Any]:
    """Return the classes that hold values and do nothing.

    NumPy's constructor of a number has moved between its versions, and files name either place.
    """
    scalar = np.float64(0).__reduce__()[0]
    kinds = {
        type(np.dtype(name))
        for name in ("bool", "int8", "uint8", "int16", "int32", "int64", "float16", "float32", "float64")
    }
    return [
        argparse.Namespace,
        np.dtype,
        *kinds,
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
    ]


_HARMLESS = _harmless()
