"""Load models from files and save them: `from_pretrained`, `save_pretrained`, the released layout."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from mvar_models.checkpoints import official, zoo
from mvar_models.checkpoints.checkpoint import Checkpoint, open_checkpoint
from mvar_models.checkpoints.tensor_files import CONFIG_DIGEST, config_digest, save_safetensors
from mvar_models.config import CONFIG_NAME, WEIGHTS_NAME, Config, MVARConfig, TransformerConfig
from mvar_models.devices import checked_device, without_values
from mvar_models.files import replacing
from mvar_models.registry import ARCHITECTURES, architecture, generator_titles

logger = logging.getLogger(__name__)

C = TypeVar("C", bound=Config)
M = TypeVar("M", bound="PretrainedModel")


class PretrainedModel(nn.Module):
    """A network made from a `Config`, stored as config.json and model.safetensors in one folder.

    Attributes:
        config_class: Class of the configuration.
        config: The configuration; subclasses declare its type.
    """

    config_class: ClassVar[type[Config]]
    config: Config

    @classmethod
    @torch.inference_mode(False)
    def from_pretrained(
        cls: type[M],
        name: str | os.PathLike[str] | Checkpoint,
        *,
        revision: str | None = None,
        subfolder: str = "",
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | int | None = None,
    ) -> M:
        """Load a model in eval mode, with every weight taken from the checkpoint.

        Args:
            name: A zoo name (`list_models()`), a Hub id, a folder written by `save_pretrained`, the folder of
                a run (its final model, else its best so far), a weights file beside its config.json, an index
                of shards, an official .pth file, or a checkpoint that `open_checkpoint` returned. A zoo name
                or an id may pin a revision: "var-d16@main", "org/name@v1".
            revision: As in `huggingface_hub.hf_hub_download`; only used for the Hub.
            subfolder: Folder inside a folder or a Hub repository that holds the checkpoint.
            cache_dir: As `revision`.
            local_files_only: As `revision`.
            token: As `revision`.
            dtype: Type of the weights; default: float32, whatever the file holds. Weights that need no
                conversion stay mapped from the file on a CPU: no second copy is made, and the file must not
                be overwritten in place while the model lives.
            device: Where to put them: a device, its name, or the number of a GPU; default: CPU.

        Raises:
            FileNotFoundError: there is nothing of that name here or on the Hub.
            ValueError: the file is not a checkpoint of this kind of model (the message says what it is), or
                this machine does not have the device.
        """
        place = checked_device(device)
        checkpoint = open_checkpoint(
            name,
            subfolder=subfolder,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
        )
        config, state = _read(checkpoint, cls.config_class)
        with without_values():
            model = cls(config)
        where = str(checkpoint.weights)
        _assign(model, config, state, dtype=dtype or torch.float32, device=place, where=where)
        model.reset_buffers()
        return model.eval()

    def reset_buffers(self) -> None:
        """Recompute the buffers that files do not store, on the device of the parameters."""

    def save_pretrained(self, folder: str | os.PathLike[str], dtype: torch.dtype | None = None) -> Path:
        """Write config.json and model.safetensors to a folder, each complete or not at all.

        Args:
            folder: Made if need be.
            dtype: Type to convert floating-point weights to; None keeps theirs.
        """
        folder = Path(folder)
        save_model(self.state_dict(), self.config, folder, dtype)
        return folder

    def export_official(self, path: str | os.PathLike[str]) -> Path:
        """Write a .pth under the released names and shapes, which the released programs load strictly."""
        export_official(self, self.config, Path(path))
        return Path(path)

    def push_to_hub(self, repository: str, **options: Any) -> str:
        """Upload to the Hub as org/name, with a model card, and return the commit's address.

        Args:
            repository: Hub id, "org/name".
            options: As for `mvar_models.checkpoints.push.push_to_hub`.
        """
        # Imported here, because huggingface_hub is slow to import and loading from disk does not need it.
        from mvar_models.checkpoints.push import CardFacts, push_to_hub

        facts = CardFacts(type(self).__name__, self.config, self.num_parameters())
        return push_to_hub(self.save_pretrained, facts, repository, **options)

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the parameters."""
        return next(self.parameters()).dtype

    def num_parameters(self) -> int:
        """Return the number of parameters."""
        return sum(parameter.numel() for parameter in self.parameters())


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


def _read(checkpoint: Checkpoint, config_class: type[C]) -> tuple[C, dict[str, Tensor]]:
    """Return the configuration and the tensors, which keep the names that they have in the file.

    Raises:
        ValueError: the checkpoint is of another kind, or its file holds no model; the message says what it
            is.
    """
    source, kind = checkpoint.source, config_class.model_type
    if source.entry is not None and source.entry.model_type != kind:
        raise ValueError(f"{source.entry.name} is a {source.entry.model_type} model, expected {kind}")
    contents, where = checkpoint.contents(kind), checkpoint.weights
    if checkpoint.config_values is not None:
        config = config_class.from_dict(checkpoint.config_values, str(checkpoint.config_path))
        return config, contents.state
    if not official.is_official(contents.state):
        titles = ", ".join(row.title for row in ARCHITECTURES.values())
        raise ValueError(
            f"{where} has no {CONFIG_NAME} beside it, "
            f"and its tensors are not those of a released model ({titles})"
        )
    try:
        config = official.infer_config(contents.state, config_class)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if isinstance(config, TransformerConfig):
        if source.entry is not None and source.entry.depth not in (None, config.depth):
            logger.warning(
                "%s has depth %d, its name in the zoo says %d", where, config.depth, source.entry.depth
            )
        if contents.kind not in (None, kind):
            logger.warning("%s was written as %s and is read as %s", where, contents.kind, kind)
        if config.num_classes == zoo.IMAGENET_CLASSES:
            # Every released transformer was trained on ImageNet.
            config = config.replace(class_names=zoo.imagenet_names())
    entry = source.entry or zoo.of_file(where.name, kind)
    return config.replace(**(entry.preset if entry else {})), contents.state


def _assign(
    model: nn.Module,
    config: Config,
    state: dict[str, Tensor],
    *,
    dtype: torch.dtype,
    device: torch.device,
    where: str,
) -> None:
    """Give a model that was built on the meta device its weights, strictly.

    Args:
        model: The network; buffers that files do not store are left to its `reset_buffers`.
        config: Its configuration.
        state: Tensors under our names or the released ones.
        dtype: Type of the floating-point weights.
        device: Where to put them.
        where: The file, for error messages.

    Raises:
        ValueError: entries are missing, unexpected or of another shape.
    """
    if official.is_official(state):
        state = official.from_official(state, model, config)
    expected = model.state_dict()
    _check_names(type(model).__name__, config, expected, state, where)
    integers = [n for n, v in expected.items() if v.is_floating_point() and not state[n].is_floating_point()]
    if integers:
        kind = str(state[integers[0]].dtype).removeprefix("torch.")
        raise ValueError(f"{where}: {integers[0]} is of {kind}, expected floating-point weights")
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


def _check_names(
    title: str, config: Config, expected: Mapping[str, Tensor], state: Mapping[str, Tensor], where: str
) -> None:
    missing, unexpected = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    if not missing and not unexpected:
        return
    depth = f" of depth {config.depth}" if isinstance(config, TransformerConfig) else ""
    parts = [f"{len(missing)} entries missing ({', '.join(missing[:3])}, ...)"] if missing else []
    parts += [f"{len(unexpected)} unexpected ({', '.join(unexpected[:3])}, ...)"] if unexpected else []
    raise ValueError(
        f"{where} seems to be {_describe(state)}; you asked for a {title}{depth}: {'; '.join(parts)}"
    )


def _describe(state: Mapping[str, Tensor]) -> str:
    if "quantizer.codebook.weight" in state:
        return "a VQVAE"
    if "class_embedding.weight" in state:
        depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
        return f"a {generator_titles()} of depth {depth}"
    return "no model of this package"
