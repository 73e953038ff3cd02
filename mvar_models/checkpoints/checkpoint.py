"""Open a checkpoint: fetch and read each of its files at most once, whoever asks."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mvar_models.checkpoints import zoo
from mvar_models.checkpoints.locate import HubOptions, Source, locate
from mvar_models.checkpoints.official import is_official
from mvar_models.checkpoints.tensor_files import (
    INDEX_SUFFIX,
    Contents,
    config_digest,
    contents_of,
    read_index,
    read_values,
    saved_with,
)
from mvar_models.config import CONFIG_NAME, VQVAE_FOLDER, model_type_of
from mvar_models.records import read_record
from mvar_models.registry import ARCHITECTURES, Architecture, generator_names, generator_titles

logger = logging.getLogger(__name__)

_RELEASED_SUFFIXES = (".pth", ".pt", ".ckpt")
# Seconds in which another process that replaced one file replaces the next.
_PATIENCE = 0.5


class Checkpoint:
    """The files of one checkpoint, fetched and read when first needed and then kept.

    `from_pretrained` of models and pipelines takes it in place of a name.

    Attributes:
        source: Where its files are.
    """

    def __init__(self, source: Source) -> None:
        self.source = source

    def __str__(self) -> str:
        return self.source.name

    @cached_property
    def weights(self) -> Path:
        """The weights file on this disk."""
        return self.source.fetch_weights()

    @cached_property
    def config_path(self) -> Path | None:
        """The config.json on this disk; None if the weights come without one."""
        if self.source.config is None:
            return None
        # A released file tells its own shape, and what lies beside it among downloads may be another's.
        if Path(self.source.weights).suffix in _RELEASED_SUFFIXES and is_official(self.contents().state):
            return None
        return self.source.fetch(self.source.config)

    @cached_property
    def config_values(self) -> dict[str, Any] | None:
        """The values of config.json, or None."""
        return None if self.config_path is None else read_record(self.config_path, dict[str, Any])

    def contents(self, kind: str = "") -> Contents:
        """Return the tensors; `kind` selects a network where a training program's file holds several."""
        return contents_of(self._values, self.weights, kind)

    @cached_property
    def _values(self) -> Any:
        if self.source.repository is not None and self.weights.name.endswith(INDEX_SUFFIX):
            for shard in read_index(self.weights):
                self.source.fetch(Path(self.source.weights).with_name(shard).as_posix())
        return self._of_one_save() if self.source.repository is None else read_values(self.weights)

    def _of_one_save(self) -> Any:
        """Read the weights that go with config.json, though a trainer may be replacing both."""
        path, seen, until = self.weights, None, 0.0
        while True:
            before = path.stat()
            values, digest = read_values(path), saved_with(path)
            after = path.stat()
            same = (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
            unknown = digest is None or self.source.config is None
            if same and (unknown or digest == config_digest(self.config_values or {})):
                return values
            if seen != (seen := (after.st_ino, after.st_mtime_ns, self.config_values)):
                until = time.monotonic() + _PATIENCE  # the other process is at work
            elif time.monotonic() > until:
                break
            self.__dict__.pop("config_values", None)
            time.sleep(_PATIENCE / 100)
        logger.warning(
            "%s is not the one that %s was saved with: it was edited, or a save stopped halfway",
            self.config_path,
            path.name,
        )
        return values

    def kind(self, arch: str | None = None) -> str | None:
        """Return the architecture's name, or None if nothing tells.

        The zoo entry tells, or config.json, or the released program that wrote the file. A bare released
        state dict is the same for all transformers: `arch` then says what to read it as.
        """
        if self.source.entry is not None:
            return self.source.entry.model_type
        if self.config_values is not None:
            return model_type_of(self.config_values)
        return arch or self.contents().kind

    def architecture(self, arch: str | None = None) -> Architecture:
        """Return the row of the registry for a checkpoint that generates images; `arch` as for `kind`.

        Raises:
            ValueError: nothing tells which architecture it is, or it is one that generates no images.
        """
        kind, titles = self.kind(arch), generator_titles()
        if kind is None:
            alike = [name for name in generator_names() if not ARCHITECTURES[name].released_mark]
            raise ValueError(
                f"{self} does not say which architecture it is "
                f"({' or '.join(ARCHITECTURES[name].title for name in alike)}): "
                f"without {CONFIG_NAME} they look alike; pass arch={' or '.join(map(repr, alike))}"
            )
        row = ARCHITECTURES.get(kind)
        if row is None or not row.is_generator:
            raise ValueError(f"{self} is a {kind} model; needed is {titles}")
        return row

    @cached_property
    def vqvae_name(self) -> str | None:
        """Name, folder or file of the VQVAE whose codes the model predicts; None if nothing tells.

        The VQVAE inside a Hub repository is downloaded for it; its name is then a folder of the cache.
        """
        entry = self.source.entry
        preset = entry.preset if entry is not None else {}
        named = preset.get("vqvae") or (self.config_values or {}).get("vqvae")
        if named is not None:
            return str(named)
        if self.config_path is None:
            # A training program's file may hold both networks; otherwise it used the one released VQVAE.
            if self.contents().has_vqvae:
                return str(self.weights)
            return zoo.RELEASED_VQVAE if zoo.of_file(self.weights.name) else None
        row = ARCHITECTURES.get(self.kind() or "")
        inner = None if row is not None and not row.is_generator else self.source.inside(VQVAE_FOLDER)
        if inner is None:
            return None
        opened = Checkpoint(inner)
        assert opened.config_path is not None
        return str(opened.weights.parent)

    def open_vqvae(self, name: str | os.PathLike[str] | None = None) -> Checkpoint:
        """Open the VQVAE of that name, or else the one that the checkpoint goes with.

        Raises:
            ValueError: the checkpoint does not say which one it goes with.
        """
        name = name or self.vqvae_name
        if name is None and self.config_path is not None:
            raise ValueError(f"{self} does not say which VQVAE its codes belong to; pass vqvae=")
        name = name or zoo.RELEASED_VQVAE
        if name == self.source.weights:
            return self
        # A revision pins the model's repository, not the VQVAE's.
        return Checkpoint(locate(name, hub=replace(self.source.hub, revision=None)))


def open_checkpoint(
    name: str | os.PathLike[str] | Checkpoint,
    *,
    subfolder: str = "",
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> Checkpoint:
    """Open a checkpoint by name; see `PretrainedModel.from_pretrained` for the arguments.

    An opened checkpoint is returned as it is, and the other arguments are then not used.

    Raises:
        FileNotFoundError: nothing of that name.
    """
    if isinstance(name, Checkpoint):
        return name
    hub = HubOptions(revision, cache_dir, local_files_only, token)
    return Checkpoint(locate(name, subfolder, hub))
