"""Checkpoint files: finding, safe reading, strict loading, atomic writing.

Nothing read here can run code: safetensors, or `torch.load(weights_only=True)`. Loading is always strict; what is wrong is said in one line.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mvar_models import imagenet, official
from mvar_models.config import CONFIG_NAME, Config, TransformerConfig, read_config

WEIGHTS_NAME = "model.safetensors"
# Where the released training programs and wrappers keep the model inside a larger dictionary.
_NESTED = ("mvar_wo_ddp", "var_wo_ddp", "trainer", "state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")


@dataclass(frozen=True)
class Source:
    """A weights file on this disk, and its config.json if it has one."""

    weights: Path
    config: Path | None
    preset: Mapping[str, Any] | None = None


def locate(name: str | os.PathLike[str], model_type: str, subfolder: str = "", **hub_options: Any) -> Source:
    """Find a checkpoint by zoo name, folder, file or Hub id; see `PretrainedModel.from_pretrained`. `subfolder`: of a folder or a Hub id."""
    from mvar_models import zoo

    entry = zoo.find(str(name))
    if entry is not None:
        return zoo.fetch(entry, model_type, **hub_options)
    path = Path(name)
    if path.is_dir():
        return _in_folder(path / subfolder)
    if path.is_file():
        config = path.parent / CONFIG_NAME
        return Source(path, config if path.suffix == ".safetensors" and config.is_file() else None)
    if zoo.looks_like_hub_id(str(name)):
        return zoo.fetch_repository(str(name), subfolder=subfolder, **hub_options)
    raise FileNotFoundError(
        f"{name}: no such file or folder, and no model of that name in the zoo ({', '.join(zoo.list_models())})"
    )


def _in_folder(folder: Path) -> Source:
    weights = folder / WEIGHTS_NAME
    if not weights.is_file():
        raise FileNotFoundError(f"{folder} has no {WEIGHTS_NAME}; a checkpoint folder is what save_pretrained writes")
    config = folder / CONFIG_NAME
    if not config.is_file():
        raise FileNotFoundError(f"{folder} has no {CONFIG_NAME} beside {WEIGHTS_NAME}")
    return Source(weights, config)


def load(source: Source, config_class: type[Config]) -> tuple[Config, dict[str, Tensor]]:
    """Configuration and tensors; official layouts come back under their own names."""
    state = read_state(source.weights)
    if source.config is not None:
        values = read_config(source.config)
        return config_class.from_dict(values, str(source.config)), state
    if not official.is_official(state):
        raise ValueError(f"{source.weights} has no {CONFIG_NAME} beside it and its tensors are not those of a released VAR, MVAR or VQVAE")
    try:
        config = official.infer_config(state, config_class)
    except ValueError as error:
        raise ValueError(f"{source.weights}: {error}") from None
    if isinstance(config, TransformerConfig) and config.num_classes == imagenet.NUM_CLASSES:
        config = config.replace(class_names=imagenet.class_names())  # every released transformer's classes are ImageNet's
    return config.replace(**(source.preset or {})), state


def released_kind(path: Path) -> str | None:
    """"var" or "mvar" where a released program's file says so itself; a bare state dict, alike for both, gives None."""
    values = _read(path)
    while isinstance(values, dict):
        for kind in ("mvar", "var"):
            if f"{kind}_wo_ddp" in values:
                return kind
        values = next((values[key] for key in _NESTED if isinstance(values.get(key), dict)), None)
    return None


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, without wrappers and prefixes; mapped, not copied, into memory."""
    return _unwrap(_read(path), path)


def _read(path: Path) -> Any:
    _refuse_impostors(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a complete safetensors file ({error}); download or copy it again") from None
    except Exception as error:  # torch.load raises pickle, zip, EOF and runtime errors alike
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} cannot be read as a PyTorch checkpoint without running code from it ({reason})") from None


def _refuse_impostors(path: Path) -> None:
    """What failed downloads leave behind."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise ValueError(f"{path} is empty; download or copy it again")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ValueError(f"{path} is a web page, probably an error message saved in a checkpoint's place; download it again")
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a Git LFS pointer, the checkpoint itself was not fetched; run `git lfs pull` or download it from the Hub")


def _unwrap(values: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(values, dict) and not _is_state(values):
        inner = next((values[key] for key in _NESTED if isinstance(values.get(key), dict)), None)
        if inner is None and "param_groups" in values:
            raise ValueError(f"{path} holds an optimizer's state without a model; take the checkpoint that was written beside it")
        if inner is None:
            raise ValueError(f"{path} holds no model: its entries are {', '.join(map(str, list(values)[:8])) or 'none'}")
        values = inner
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, not a state dict")
    return {_strip_prefixes(name): value for name, value in values.items()}


def _is_state(values: dict[Any, Any]) -> bool:
    return bool(values) and all(isinstance(value, Tensor) for value in values.values())


def _strip_prefixes(name: str) -> str:
    while name.startswith(_PREFIXES):
        name = name.split(".", 1)[1]
    return name


def assign(model: nn.Module, state: dict[str, Tensor], dtype: torch.dtype, device: torch.device, where: str) -> None:
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
        name: value.to(device=device, dtype=dtype if value.is_floating_point() else value.dtype) for name, value in state.items()
    }
    model.load_state_dict(placed, strict=True, assign=True)
    _make_derived_buffers(model, device)


def _check_names(model: nn.Module, expected: Mapping[str, Tensor], state: Mapping[str, Tensor], where: str) -> None:
    missing, unexpected = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    if not missing and not unexpected:
        return
    seems = _what_is_it(state)
    asked = type(model).__name__
    parts = [f"{len(missing)} entries missing ({', '.join(missing[:3])}, ...)"] if missing else []
    parts += [f"{len(unexpected)} unexpected ({', '.join(unexpected[:3])}, ...)"] if unexpected else []
    raise ValueError(f"{where} seems to be {seems}, not this {asked}: {'; '.join(parts)}")


def _what_is_it(state: Mapping[str, Tensor]) -> str:
    if "quantizer.codebook.weight" in state:
        return "a VQVAE"
    if "class_embedding.weight" in state:
        depth = 1 + max((int(name.split(".")[1]) for name in state if name.startswith("blocks.")), default=-1)
        return f"a VAR or MVAR of depth {depth}"
    return "no model of this package"


def _make_derived_buffers(model: nn.Module, device: torch.device) -> None:
    """Buffers that are functions of the configuration are not in files; off the meta device they are computed again."""
    if isinstance(model.config, TransformerConfig):
        model.register_buffer("scale_of_token", model.config.scale_of_token().to(device), persistent=False)


def save_safetensors(state: Mapping[str, Tensor], path: Path, dtype: torch.dtype | None = None) -> None:
    """Write tensors; floating-point ones as `dtype` if given. The file appears complete or not at all."""
    tensors = {}
    for name, value in state.items():
        value = value.detach().to("cpu")
        tensors[name] = (value.to(dtype) if dtype is not None and value.is_floating_point() else value).contiguous()
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})


def export_official(model: nn.Module, path: Path) -> None:
    """Write a .pth that the released programs load strictly: bare for VAR and the VQVAE, under `mvar_wo_ddp` for MVAR, as released."""
    state = {name: value.detach().cpu().contiguous() for name, value in official.to_official(model, model.config).items()}
    with replacing(path) as temporary:
        torch.save({"mvar_wo_ddp": state} if model.config.model_type == "mvar" else state, temporary)


def write_text(path: Path, text: str) -> None:
    """Write a text file that appears complete or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place, flushed to disk, when the block ends without an error."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
