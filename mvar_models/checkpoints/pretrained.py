"""What every model here can do with files: `from_pretrained` and `save_pretrained`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from mvar_models.checkpoints import load as checkpoints
from mvar_models.config import CONFIG_NAME, Config
from mvar_models.devices import checked_device
from mvar_models.files import write_text

M = TypeVar("M", bound="PretrainedModel")


class PretrainedModel(nn.Module):
    """A network made from a `Config`, stored as config.json beside model.safetensors."""

    config_class: ClassVar[type[Config]]
    config: Config

    @classmethod
    def from_pretrained(
        cls: type[M],
        name: str | os.PathLike[str],
        *,
        revision: str | None = None,
        subfolder: str = "",
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> M:
        """A model in eval mode, with every weight taken from the checkpoint.

        Args:
            name: a zoo name (`list_models()`), a folder written by `save_pretrained`, a .safetensors or official .pth file, or a Hub id; a zoo
                name or an id may pin a revision: "var-d16@main", "org/name@v1".
            subfolder: folder inside a folder or a Hub repository that holds the checkpoint.
            revision, cache_dir, local_files_only, token: as in `huggingface_hub.hf_hub_download`; only used for the Hub.
            dtype: of the weights; default: float32, whatever the file holds. Weights that need no conversion stay mapped from the file on a CPU:
                no second copy is made, and the file must not be overwritten in place while the model lives.
            device: where to put them; default: CPU.

        Raises:
            FileNotFoundError: nothing of that name here or on the Hub.
            ValueError: the file is not a checkpoint of this kind of model; the message says what it is. No such device here.
        """
        place = checked_device(device)
        source = checkpoints.locate(
            name,
            cls.config_class.model_type,
            subfolder,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
        )
        config, state = checkpoints.load(source, cls.config_class)
        with torch.device("meta"):
            model = cls(config)
        checkpoints.assign(model, state, dtype or torch.float32, place, str(source.weights))
        return model.eval()

    def reset_buffers(self) -> None:
        """Recompute the buffers that files do not store, on the device of the parameters."""

    def save_pretrained(self, folder: str | os.PathLike[str], dtype: torch.dtype | None = None) -> Path:
        """Write config.json and model.safetensors to `folder`, each complete or not at all; `dtype` converts floating-point weights."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        checkpoints.save_safetensors(self.state_dict(), folder / checkpoints.WEIGHTS_NAME, dtype)
        write_text(folder / CONFIG_NAME, self.config.to_json())
        return folder

    def export_official(self, path: str | os.PathLike[str]) -> Path:
        """Write a .pth under the released names and shapes, which the released programs load strictly; complete or not at all."""
        checkpoints.export_official(self, Path(path))
        return Path(path)

    def push_to_hub(self, repository: str, **options: Any) -> str:
        """Upload to the Hub as org/name, with a model card; see `mvar_models.checkpoints.push.push_to_hub`. Returns the address."""
        from mvar_models.checkpoints.push import push_to_hub

        return push_to_hub(self, repository, **options)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())
