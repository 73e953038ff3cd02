"""Checkpoint files: finding, strict loading, atomic writing. Loading is always strict; what is wrong is said in one line.

Reading, which nothing from a file can make run code, is in `safe_reading`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mvar_models.checkpoints import imagenet, official
from mvar_models.checkpoints.read_tensors import read
from mvar_models.config import CONFIG_NAME, Config, TransformerConfig, read_config
from mvar_models.files import replacing

logger = logging.getLogger(__name__)

WEIGHTS_NAME = "model.safetensors"


@dataclass(frozen=True)
class Source:
    """A weights file on this disk, and its config.json if it has one. From the zoo: configuration values the file cannot carry, and the depth
    that the name promises."""

    weights: Path
    config: Path | None
    preset: Mapping[str, Any] | None = None
    depth: int | None = None


def locate(name: str | os.PathLike[str], model_type: str, subfolder: str = "", **hub_options: Any) -> Source:
    """Find a checkpoint by zoo name, folder, file or Hub id; see `PretrainedModel.from_pretrained`. `subfolder`: of a folder or a Hub id."""
    from mvar_models.checkpoints import zoo

    entry = zoo.find(str(name))
    if entry is not None:
        return zoo.fetch(entry, model_type, **hub_options)
    path = Path(name)
    if path.is_dir():
        return _in_folder(path / subfolder)
    if path.is_file():
        config = path.parent / CONFIG_NAME
        if path.suffix == ".safetensors" and config.is_file():
            return Source(path, config)
        released = zoo.of_file(path.name, model_type)
        return Source(path, None, released.preset if released else None)
    if zoo.looks_like_hub_id(str(name)):
        return zoo.fetch_repository(str(name), subfolder=subfolder, **hub_options)
    raise FileNotFoundError(
        f"{name}: no such file or folder, and no model of that name in the zoo ({', '.join(zoo.list_models())})"
    )


def _in_folder(folder: Path) -> Source:
    weights = folder / WEIGHTS_NAME
    if not weights.is_file() and (folder / "model" / WEIGHTS_NAME).is_file():
        raise FileNotFoundError(f"{folder} is a run's folder; its model is {folder / 'model'}")
    if not weights.is_file():
        others = sorted(
            path.name
            for path in folder.glob("*")
            if path.suffix in (".pth", ".pt", ".safetensors", ".ckpt", ".bin")
        )
        hint = (
            f"it holds {', '.join(others[:4])}: name the file itself"
            if others
            else "a checkpoint folder is what save_pretrained writes"
        )
        raise FileNotFoundError(f"{folder} has no {WEIGHTS_NAME}; {hint}")
    config = folder / CONFIG_NAME
    if not config.is_file():
        raise FileNotFoundError(f"{folder} has no {CONFIG_NAME} beside {WEIGHTS_NAME}")
    return Source(weights, config)


def load(source: Source, config_class: type[Config]) -> tuple[Config, dict[str, Tensor]]:
    """Configuration and tensors; official layouts come back under their own names."""
    asked = config_class.model_type
    contents = read(source.weights, asked)
    state = contents.state
    if source.config is not None:
        values = read_config(source.config)
        return config_class.from_dict(values, str(source.config)), state
    if not official.is_official(state):
        raise ValueError(
            f"{source.weights} has no {CONFIG_NAME} beside it and its tensors are not those of a released VAR, MVAR or VQVAE"
        )
    try:
        config = official.infer_config(state, config_class)
    except ValueError as error:
        raise ValueError(f"{source.weights}: {error}") from None
    if isinstance(config, TransformerConfig):
        if source.depth is not None and config.depth != source.depth:
            logger.warning(
                "%s is a VAR or MVAR of depth %d, its name in the zoo says %d",
                source.weights,
                config.depth,
                source.depth,
            )
        if contents.kind not in (None, asked):
            logger.warning(
                "%s was written as a %s and is read as a %s",
                source.weights,
                contents.kind.upper(),
                asked.upper(),
            )
        if config.num_classes == imagenet.NUM_CLASSES:
            config = config.replace(
                class_names=imagenet.class_names()
            )  # every released transformer's classes are ImageNet's
    return config.replace(**(source.preset or {})), state


def assign(
    model: nn.Module, state: dict[str, Tensor], dtype: torch.dtype, device: torch.device, where: str
) -> None:
    """Give a model made on the meta device its weights, strictly; `where` names the file in errors.

    Raises:
        ValueError: missing, unexpected or wrongly shaped entries, in one line.
    """
    if official.is_official(state):
        state = official.from_official(state, model, model.config)
    expected = model.state_dict()
    _check_names(model, expected, state, where)
    wrong = [name for name, value in expected.items() if value.shape != state[name].shape]
    if wrong:
        name = wrong[0]
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise ValueError(
            f"{where}: {name} is {tuple(state[name].shape)}, expected {tuple(expected[name].shape)}{more}; "
            f"the file belongs to a model of another size"
        )
    placed = {
        name: value.to(device=device, dtype=dtype if value.is_floating_point() else value.dtype)
        for name, value in state.items()
    }
    model.load_state_dict(placed, strict=True, assign=True)
    model.reset_buffers()


def _check_names(
    model: nn.Module, expected: Mapping[str, Tensor], state: Mapping[str, Tensor], where: str
) -> None:
    missing, unexpected = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    if not missing and not unexpected:
        return
    seems = _what_is_it(state)
    asked = (
        f"{type(model).__name__} of depth {model.config.depth}"
        if isinstance(model.config, TransformerConfig)
        else type(model).__name__
    )
    parts = [f"{len(missing)} entries missing ({', '.join(missing[:3])}, ...)"] if missing else []
    parts += [f"{len(unexpected)} unexpected ({', '.join(unexpected[:3])}, ...)"] if unexpected else []
    raise ValueError(f"{where} seems to be {seems}; you asked for a {asked}: {'; '.join(parts)}")


def _what_is_it(state: Mapping[str, Tensor]) -> str:
    if "quantizer.codebook.weight" in state:
        return "a VQVAE"
    if "class_embedding.weight" in state:
        depth = 1 + max((int(name.split(".")[1]) for name in state if name.startswith("blocks.")), default=-1)
        return f"a VAR or MVAR of depth {depth}"
    return "no model of this package"


def save_safetensors(state: Mapping[str, Tensor], path: Path, dtype: torch.dtype | None = None) -> None:
    """Write tensors; floating-point ones as `dtype` if given. The file appears complete or not at all."""
    tensors = {}
    for name, value in state.items():
        value = value.detach().to("cpu")
        tensors[name] = (
            value.to(dtype) if dtype is not None and value.is_floating_point() else value
        ).contiguous()
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})


def export_official(model: nn.Module, path: Path) -> None:
    """Write a .pth that the released programs load strictly: bare for VAR and the VQVAE, under `mvar_wo_ddp` for MVAR, as released."""
    state = {
        name: value.detach().cpu().contiguous()
        for name, value in official.to_official(model, model.config).items()
    }
    with replacing(path) as temporary:
        torch.save({"mvar_wo_ddp": state} if model.config.model_type == "mvar" else state, temporary)
