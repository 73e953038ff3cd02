"""Weights to files. A file appears complete or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mvar_models.checkpoints import official
from mvar_models.checkpoints.read_tensors import CONFIG_DIGEST, config_digest
from mvar_models.config import CONFIG_NAME, WEIGHTS_NAME, Config, MVARConfig
from mvar_models.files import replacing
from mvar_models.registry import architecture


def save_model(
    state: dict[str, Tensor], config: Config, folder: Path, dtype: torch.dtype | None = None
) -> None:
    """Write config.json, and model.safetensors, whose header holds the digest of the first.

    Args:
        state: Tensors by name, on any device.
        config: The configuration.
        folder: Made if need be.
        dtype: As for `save_safetensors`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / CONFIG_NAME) as temporary:
        temporary.write_text(config.to_json(), encoding="utf-8")
        made_for = {CONFIG_DIGEST: config_digest(config.to_dict())}
        save_safetensors(state, folder / WEIGHTS_NAME, dtype, made_for)


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


def export_official(model: nn.Module, config: Config, path: Path) -> None:
    """Write a .pth that the released programs load strictly, with the outer entry that the published file
    has.

    Raises:
        ValueError: the model attends to previous scales, which the released programs cannot.
    """
    if isinstance(config, MVARConfig) and config.previous_scales:
        raise ValueError(
            "the released programs know no previous_scales, so this model has no released layout; "
            "save it with save_pretrained"
        )
    state = {
        name: value.detach().cpu().contiguous() for name, value in official.to_official(model, config).items()
    }
    row = architecture(config.model_type)
    values: dict[str, Any] = {str(row.released_entry): state} if row.released_wrapped else state
    if row.released_outer:
        values = {row.released_outer: values}
    with replacing(path) as temporary:
        torch.save(values, temporary)
