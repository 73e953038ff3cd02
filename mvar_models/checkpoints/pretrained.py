"""What every model can do with files: `from_pretrained`, `save_pretrained`, export and upload."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from mvar_models.checkpoints import load as loading
from mvar_models.checkpoints import save as saving
from mvar_models.checkpoints.peek import Checkpoint, open_checkpoint
from mvar_models.config import Config
from mvar_models.devices import checked_device

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
            name: A zoo name (`list_models()`), a folder written by `save_pretrained`, a weights file beside
                its config.json, an index of shards, an official .pth file, a Hub id, or a checkpoint that
                `open_checkpoint` returned. A zoo name or an id may pin a revision: "var-d16@main",
                "org/name@v1".
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
        config, state = loading.load(checkpoint, cls.config_class)
        with torch.device("meta"):
            model = cls(config)
        where = str(checkpoint.weights)
        loading.assign(model, config, state, dtype=dtype or torch.float32, device=place, where=where)
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
        saving.save_model(self.state_dict(), self.config, folder, dtype)
        return folder

    def export_official(self, path: str | os.PathLike[str]) -> Path:
        """Write a .pth under the released names and shapes, which the released programs load strictly."""
        saving.export_official(self, self.config, Path(path))
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
