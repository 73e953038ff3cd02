"""Locate a checkpoint's files by its name: a zoo name, a Hub id, a folder, a run folder or a file."""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import re
import threading
import time
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from importlib import resources
from pathlib import Path

from mvar_models.checkpoints import zoo
from mvar_models.checkpoints.tensor_files import INDEX_SUFFIX
from mvar_models.config import CONFIG_NAME, WEIGHTS_NAME

logger = logging.getLogger(__name__)

# What `locate` takes, for the help of options.
FORMS = "zoo name, Hub id, model folder, run folder or file"
_WEIGHT_SUFFIXES = (".pth", ".pt", ".safetensors", ".ckpt", ".bin", ".distcp")
# Weights of a folder or a repository, by preference.
_WEIGHTS_NAMES = (
    WEIGHTS_NAME,
    WEIGHTS_NAME + INDEX_SUFFIX,
    "pytorch_model.bin",
    "pytorch_model.bin" + INDEX_SUFFIX,
)
_SHARD = re.compile(r".+-\d{5}-of-\d{5}\.\w+")
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*(@[\w./-]+)?")
# The models of a run folder, by preference.
_OF_RUN = ("model", "best")
# Seconds in which the Hub has to answer, and for which its answer counts.
_ANSWERS_WITHIN, _ANSWER_COUNTS = 3.0, 60


@dataclass(frozen=True)
class HubOptions:
    """How to download, as `huggingface_hub.hf_hub_download` takes it.

    Attributes:
        revision: Branch, tag or commit; None is the default branch, or what the zoo entry names.
        cache_dir: Folder of the download cache.
        local_files_only: Whether to use the cache alone.
        token: Access token, or whether to use the stored one.
    """

    revision: str | None = None
    cache_dir: str | os.PathLike[str] | None = None
    local_files_only: bool = False
    token: str | bool | None = None


@dataclass(frozen=True)
class Source:
    """Where a checkpoint's files are. Nothing is downloaded before a file is fetched.

    Attributes:
        name: What the user wrote.
        weights: The weights file: a path, or a path inside `repository`.
        config: Its config.json likewise; None if the weights come without one.
        repository: Hub id; None for files on this disk.
        entry: Zoo entry of that name, if there is one.
        hub: How to download from `repository`.
    """

    name: str
    weights: str
    config: str | None
    repository: str | None = None
    entry: zoo.Entry | None = None
    hub: HubOptions = field(default_factory=HubOptions)

    def fetch(self, file: str) -> Path:
        """Return the path of one of the files on this disk, downloading it if need be.

        Raises:
            FileNotFoundError: no such repository, revision or file, or the Hub cannot be reached.
        """
        return Path(file) if self.repository is None else download(self.repository, file, self.hub)

    def fetch_weights(self) -> Path:
        """Return the path of the weights, or of the index of their shards, downloading it if need be.

        Raises:
            FileNotFoundError: as `fetch`.
        """
        if self.repository is None or self.entry is not None:
            return self.fetch(self.weights)
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        hub, problems = self.hub, []
        for name in _WEIGHTS_NAMES:
            try:
                return download(self.repository, Path(self.weights).with_name(name).as_posix(), hub)
            except FileNotFoundError as error:
                problems.append(error)
                if not isinstance(error.__cause__, EntryNotFoundError):
                    break
                if isinstance(error.__cause__, LocalEntryNotFoundError):
                    hub = replace(hub, local_files_only=True)  # each name would wait for the Hub again
        raise problems[0]

    def inside(self, subfolder: str) -> Source | None:
        """Return the checkpoint in a folder beside this one's weights; None if there is no such folder."""
        folder = Path(self.weights).parent / subfolder
        if self.repository is None:
            return _in_folder(str(folder), folder) if (folder / CONFIG_NAME).is_file() else None
        weights, config = (folder / name for name in (WEIGHTS_NAME, CONFIG_NAME))
        # Paths inside a repository have forward slashes on every system.
        return replace(self, weights=weights.as_posix(), config=config.as_posix(), entry=None)


def locate(name: str | os.PathLike[str], subfolder: str = "", hub: HubOptions | None = None) -> Source:
    """Find a checkpoint.

    Args:
        name: Zoo name, Hub id, model folder, run folder (its final model, else its best) or weights file; a
            zoo name or an id may pin a revision after an "@".
        subfolder: Folder inside a folder or a Hub repository that holds the checkpoint.
        hub: How to download.

    Raises:
        FileNotFoundError: there is nothing of that name, or a folder lacks its files.
        ValueError: a Hub repository of released files, which have zoo names of their own.
    """
    text, hub = str(name), hub or HubOptions()
    entry = zoo.find(text)
    if entry is not None:
        return _of_entry(text, entry, hub)
    path = Path(name)
    if path.is_dir():
        return _in_folder(text, path / subfolder)
    if path.is_file():
        index = next(path.parent.glob(f"*{INDEX_SUFFIX}"), None) if _SHARD.fullmatch(path.name) else None
        if index is not None:
            raise ValueError(f"{path} is a part of a model; name its folder, or {index.name}")
        config = path.parent / CONFIG_NAME
        return Source(text, str(path), str(config) if config.is_file() else None)
    if looks_like_hub_id(text):
        if _looks_like_path(path):
            raise FileNotFoundError(f"{name}: no such file or folder; on the Hub it would be {name}@main")
        return _in_repository(text, subfolder, hub)
    raise FileNotFoundError(
        f"{name}: no such file or folder, and no model of that name in the zoo{_nearest(text)}"
    )


def _nearest(name: str) -> str:
    """Return the zoo names that `name` may have meant, else all, as the end of a message."""
    close = difflib.get_close_matches(name, zoo.list_models())
    return f"; did you mean {' or '.join(close)}?" if close else f" ({', '.join(zoo.list_models())})"


def _looks_like_path(path: Path) -> bool:
    """Return whether org/name is a file or a folder misspelt: by its suffix, or the folder that it is in."""
    return "@" not in path.name and (path.suffix in _WEIGHT_SUFFIXES or path.parent.is_dir())


def looks_like_hub_id(name: str) -> bool:
    """Return whether a name has the form org/name or org/name@revision."""
    return _HUB_ID.fullmatch(name) is not None


def hub_answers() -> bool:
    """Return whether the Hub can be reached; its own library would wait for half a minute to find out."""
    return _answers(int(time.monotonic()) // _ANSWER_COUNTS)


@lru_cache(maxsize=1)
def _answers(period: int) -> bool:
    del period  # only distinguishes the calls
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    answers = []

    def ask() -> None:
        with contextlib.suppress(Exception):  # of four libraries and their versions
            answers.append(get_session().head(constants.ENDPOINT, timeout=_ANSWERS_WITHIN))

    # In a thread, since no timeout covers the lookup of the host's name.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_ANSWERS_WITHIN)
    return bool(answers)


def download(repository: str, file: str, hub: HubOptions) -> Path:
    """Download a file of a Hub repository, or find it in the cache.

    Raises:
        FileNotFoundError: in one line, what is missing.
    """
    # Imported here, because networks are used without the Hub as well.
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    if not hub.local_files_only and not hub_answers():
        hub = replace(hub, local_files_only=True)
    here = "" if zoo.in_repository(repository) else "no such folder here, and "
    try:
        return Path(hf_hub_download(repository, file, **asdict(hub)))
    except LocalEntryNotFoundError as error:
        cause: Exception = error
        reason = (
            f"{here}{file} is not in the local cache and the Hub cannot be reached; "
            "connect once, or pass a file"
        )
    except RepositoryNotFoundError as error:
        cause, reason = error, f"{here}no such repository on the Hub, or no access to it (token=)"
    except EntryNotFoundError as error:
        cause, reason = error, f"the repository has no {file}"
    # Errors of HTTP, of the connection, of the name and of the disk, of four libraries and their versions.
    except Exception as error:
        said = str(error).strip() or type(error).__name__
        cause, reason = error, f"{file} could not be downloaded: {said.splitlines()[0]}"
    raise FileNotFoundError(f"{repository}: {reason}") from cause


def _of_entry(name: str, entry: zoo.Entry, hub: HubOptions) -> Source:
    if entry.repository != zoo.EMBEDDED:
        hub = replace(hub, revision=hub.revision or entry.revision)
        return Source(name, entry.file, None, entry.repository, entry, hub)
    folder = Path(str(resources.files("mvar_models"))) / "weights" / entry.file
    if not (folder / WEIGHTS_NAME).is_file():
        raise FileNotFoundError(f"{folder} is missing: this installation lacks its weights; install it again")
    return Source(name, str(folder / WEIGHTS_NAME), str(folder / CONFIG_NAME), entry=entry)


def _in_folder(name: str, folder: Path) -> Source:
    weights = next((folder / file for file in _WEIGHTS_NAMES if (folder / file).is_file()), None)
    config = folder / CONFIG_NAME
    if weights is not None:
        if not config.is_file():
            raise FileNotFoundError(f"{folder} has no {CONFIG_NAME} for its {weights.name}")
        return Source(name, str(weights), str(config))
    for inside in _OF_RUN:
        if any((folder / inside / file).is_file() for file in _WEIGHTS_NAMES):
            logger.info("%s is a run folder: its model is %s", folder, folder / inside)
            return _in_folder(name, folder / inside)
    if (folder / "checkpoints").is_dir() and (folder / "config.yaml").is_file():
        raise FileNotFoundError(f"{folder} is the folder of a run that has no model yet")
    others = sorted(path.name for path in folder.glob("*") if path.suffix in _WEIGHT_SUFFIXES)
    if any(file.endswith(".distcp") for file in others):
        convert = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch"
        hint = f"it is a distributed checkpoint, of which `{convert}` makes one file"
    elif others:
        hint = f"it holds {', '.join(others[:4])}: name the file itself"
    else:
        hint = "a checkpoint folder is what save_pretrained writes"
    raise FileNotFoundError(f"{folder} has no {WEIGHTS_NAME}; {hint}")


def _in_repository(name: str, subfolder: str, hub: HubOptions) -> Source:
    repository, _, pinned = name.partition("@")
    released = zoo.in_repository(repository)
    if released:
        raise ValueError(
            f"{repository} holds several released files; name one of its models: {', '.join(released)}"
        )
    inside = f"{subfolder}/" if subfolder else ""
    return Source(
        name,
        inside + WEIGHTS_NAME,
        inside + CONFIG_NAME,
        repository,
        hub=replace(hub, revision=pinned or hub.revision),
    )
