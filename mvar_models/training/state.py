"""The tensors of a checkpoint by name, and their files.

A run of one process, or of DDP, is stored as safetensors files. A run of FSDP is stored by
torch.distributed.checkpoint: each process writes its own shards, and any number of processes can read them.
Nothing that is read here can run code.

Own code rather than torch's `get_optimizer_state_dict`, which takes a step to create the moments of a fresh
optimizer. Its step counts then begin at 1, so resuming before the first step, which fp16 may skip, is not
exact.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import Metadata

from mvar_models.checkpoints.tensor_files import read_state, save_safetensors
from mvar_models.files import damage_named
from mvar_models.training.optimizer import WeightAverage

WEIGHTS = "model.safetensors"
_OPTIMIZER = "optimizer.safetensors"
_AVERAGE = "average.safetensors"
_SHARDS = "shards"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def prepare_optimizer(optimizer: torch.optim.AdamW) -> None:
    """Create zero moments as the first step would, so that every checkpoint holds the same tensors."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            place = parameter.device if group["fused"] else torch.device("cpu")
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=place),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }


class TrainingState:
    """The tensors of model, optimizer and weight average; they are all sharded, or all whole."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.AdamW, average: WeightAverage | None) -> None:
        self.model = model
        self.optimizer = optimizer
        self.average = average

    def _moments(self) -> dict[str, Tensor]:
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.model.named_parameters()}
        return {
            f"{moment}.{names[parameter]}": state[moment]
            for parameter, state in self.optimizer.state.items()
            for moment in _MOMENTS
        }

    def _files(self) -> dict[str, dict[str, Tensor]]:
        files = {WEIGHTS: dict(self.model.state_dict()), _OPTIMIZER: self._moments()}
        if self.average is not None:
            files[_AVERAGE] = self.average.average
        return files

    def save(self, folder: Path) -> None:
        """Write whole tensors, one safetensors file per group."""
        for file, tensors in self._files().items():
            save_safetensors(tensors, folder / file)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Read what `save` wrote.

        Raises:
            ValueError: the checkpoint's names are not those of this run.
        """
        for file, tensors in self._files().items():
            read = read_state(folder / file)
            if set(read) != set(tensors):
                differing = ", ".join(sorted(set(read) ^ set(tensors))[:3])
                raise ValueError(f"{folder / file} is not a checkpoint of this run: {differing} differ")
            for name, tensor in tensors.items():
                if read[name].shape != tensor.shape:
                    raise ValueError(
                        f"{folder / file} is not a checkpoint of this run: {name} must be "
                        f"{tuple(tensor.shape)}, got {tuple(read[name].shape)}"
                    )
                tensor.copy_(read[name])

    def save_shards(self, folder: Path) -> None:
        """Write this process's shards; all processes must call it.

        Raises:
            OSError: one of the processes cannot write; it is raised in all of them.
        """
        try:
            dcp.save(self._flat(), storage_writer=dcp.FileSystemWriter(folder / _SHARDS, sync_files=True))
        except dcp.CheckpointException as error:
            raise OSError(_causes(error)) from error

    def load_shards(self, folder: Path) -> None:
        """Read this process's shards of a checkpoint that any number of processes wrote.

        Raises:
            ValueError: it is not a checkpoint of this run.
        """
        try:
            dcp.load(self._flat(), storage_reader=_SafeReader(folder / _SHARDS))
        except dcp.CheckpointException as error:
            raise ValueError(f"{folder} cannot be read: {_causes(error)}") from error

    def _flat(self) -> dict[str, Any]:
        return {
            f"{file.removesuffix('.safetensors')}.{name}": tensor
            for file, tensors in self._files().items()
            for name, tensor in tensors.items()
        }


def _causes(error: dcp.CheckpointException) -> str:
    return "; ".join(dict.fromkeys(str(cause) for cause, _ in error.failures.values()))


class _SafeReader(dcp.FileSystemReader):
    """torch's reader, except that the pickled index may only describe tensors, so that it runs no code.

    torch reads the shards themselves with weights_only=True.
    """

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (
            damage_named(self.path, "no checkpoint, or is damaged"),
            (Path(self.path) / ".metadata").open("rb") as file,
        ):
            metadata = _Unpickler(file).load()
        if not isinstance(metadata, Metadata):
            raise ValueError(f"{self.path} is not a checkpoint")
        metadata.storage_meta = metadata.storage_meta or dcp.metadata.StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Unpickler(pickle.Unpickler):
    _ALLOWED = frozenset(
        {
            *((f"{dcp.metadata.__name__}", name) for name in (
                "Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata",
                "BytesStorageMetadata", "MetadataIndex",
                "StorageMeta", "_MEM_FORMAT_ENCODING",
            )),
            (f"{dcp.filesystem.__name__}", "_StorageInfo"),
            ("torch", "Size"),
            ("torch", "float32"),
            ("torch.serialization", "_get_layout"),
            *(("pathlib", name) for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
            *(("pathlib._local", name) for name in ("PosixPath", "WindowsPath")),
            ("collections", "OrderedDict"),
        }
    )  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise ValueError(
                f"the index of this checkpoint asks for {module}.{name}, "
                "which no checkpoint of a run contains; it is not read"
            )
        return super().find_class(module, name)
