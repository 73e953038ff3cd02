"""The registry: name -> where the weights are, what they are, how to sample them."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from mvar_models.checkpoints.load import WEIGHTS_NAME, Source
from mvar_models.config import CONFIG_NAME, SIDES_512

_EMBEDDED = "embedded"


@dataclass(frozen=True)
class Entry:
    """One checkpoint. `repository` is a Hub id, or "embedded" for weights inside this package; `file` is a file there, or a folder.

    revision: branch, tag or commit taken where the caller names none. preset: configuration values that a released file cannot carry (sampling
    preset, VQVAE, sides). scores: as published by `source` for 50,000 pictures; never measured here. parameters: rounded; what a model itself
    counts is `num_parameters()`. depth: of a transformer; a file of another depth under this name is warned of.
    """

    name: str
    model_type: str
    repository: str
    file: str
    licence: str
    resolution: int
    parameters: str
    preset: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    depth: int | None = None
    revision: str = "main"


_VAE = "vae-ch160v4096z32"
_VAR_SAMPLING = {"guidance_scale": 1.5, "top_k": 900, "top_p": 0.96, "vqvae": _VAE}
_VAR_PAGE, _MVAR_PAGE = "github.com/FoundationVision/VAR", "huggingface.co/CVLUESTC/MVAR"


def _var(depth: int, parameters: str, fid: float, resolution: int = 256, **extra: Any) -> Entry:
    preset, scores = {**_VAR_SAMPLING, **extra}, {"FID": fid}
    file = f"var_d{depth}.pth"
    return Entry(
        f"var-d{depth}",
        "var",
        "FoundationVision/var",
        file,
        "MIT",
        resolution,
        parameters,
        preset,
        _VAR_PAGE,
        scores,
        depth,
    )


def _mvar(
    name: str,
    file: str,
    parameters: str,
    fid: float,
    inception_score: float,
    sampling: tuple[float, int, float],
) -> Entry:
    preset = {**dict(zip(("guidance_scale", "top_k", "top_p"), sampling)), "vqvae": _VAE}
    scores, depth = {"FID": fid, "IS": inception_score}, int(re.search(r"d(\d+)", name)[1])  # type: ignore[index]
    return Entry(
        name,
        "mvar",
        "CVLUESTC/MVAR",
        file,
        "see its page",
        256,
        parameters,
        preset,
        _MVAR_PAGE,
        scores,
        depth,
    )


def _digits(name: str, model_type: str, parameters: str) -> Entry:
    return Entry(name, model_type, _EMBEDDED, name, "MIT", 32, parameters)


_ENTRIES = {
    entry.name: entry
    for entry in (
        Entry(
            _VAE,
            "vqvae",
            "FoundationVision/var",
            "vae_ch160v4096z32.pth",
            "MIT",
            256,
            "109 M",
            {},
            "arXiv 2404.02905",
        ),
        _var(16, "310 M", 3.55),
        _var(20, "601 M", 2.95),
        _var(24, "1.03 B", 2.33),
        _var(30, "2.01 B", 1.97),
        _var(36, "2.35 B", 2.63, resolution=512, sides=SIDES_512),
        _mvar("mvar-d16", "mvar-d16.pth", "310 M", 3.01, 285.17, (2.7, 1200, 0.99)),
        _mvar("mvar-d16-finetuned", "mvar-finetune-d16.pth", "310 M", 3.37, 295.35, (2.0, 1200, 0.99)),
        _mvar("mvar-d20-finetuned", "mvar-finetune-d20.pth", "601 M", 2.83, 294.31, (1.5, 900, 0.96)),
        _mvar("mvar-d24-finetuned", "mvar-finetune-d24.pth", "1.03 B", 2.15, 298.85, (1.4, 900, 0.96)),
        _digits("vae-digits", "vqvae", "0.33 M"),
        _digits("var-digits", "var", "0.98 M"),
        _digits("mvar-digits", "mvar", "0.98 M"),
    )
}


def list_models(pattern: str = "*") -> list[str]:
    """Names in the zoo that match a shell pattern, such as "mvar*"."""
    return fnmatch.filter(_ENTRIES, pattern)


def find(name: str) -> Entry | None:
    """The entry of that name, which may pin a revision ("var-d16@REVISION"), or None."""
    plain, _, revision = name.partition("@")
    entry = _ENTRIES.get(plain)
    return replace(entry, revision=revision) if entry and revision else entry


def of_file(file: str, model_type: str) -> Entry | None:
    """The entry whose released file has this name: its preset holds for a copy of the file, too."""
    return next(
        (entry for entry in _ENTRIES.values() if entry.file == file and entry.model_type == model_type), None
    )


def fetch(entry: Entry, model_type: str, *, revision: str | None = None, **hub_options: Any) -> Source:
    """The entry's files on this disk, downloaded where need be. A VAR may be loaded where an MVAR is asked for only through `from_var`."""
    if entry.model_type != model_type:
        raise ValueError(f"{entry.name} is a {entry.model_type} model, expected {model_type}")
    if entry.repository == _EMBEDDED:
        folder = Path(str(resources.files("mvar_models"))) / "weights" / "digits" / entry.file
        if not (folder / WEIGHTS_NAME).is_file():
            raise FileNotFoundError(
                f"{folder} is missing; this installation came without its weights, install it again"
            )
        return Source(folder / WEIGHTS_NAME, folder / CONFIG_NAME)
    weights = _download(entry.repository, entry.file, revision=revision or entry.revision, **hub_options)
    return Source(weights, None, entry.preset, entry.depth)


def looks_like_hub_id(name: str) -> bool:
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*(@[\w./-]+)?", name) is not None


def fetch_repository(
    name: str, *, revision: str | None = None, subfolder: str = "", **hub_options: Any
) -> Source:
    """config.json and model.safetensors of a Hub repository, or of a folder in it, written as org/name or org/name@revision.

    Raises:
        ValueError: a repository of released files, which the zoo has names for.
        FileNotFoundError: no such repository, revision or file.
    """
    repository, _, pinned = name.partition("@")
    options = {"revision": pinned or revision, **hub_options}
    inside = f"{subfolder}/" if subfolder else ""
    released = [entry.name for entry in _ENTRIES.values() if entry.repository == repository]
    if released:
        raise ValueError(
            f"{repository} holds several released files; name one of its models: {', '.join(released)}"
        )
    weights = _download(repository, inside + WEIGHTS_NAME, **options)
    return Source(weights, _download(repository, inside + CONFIG_NAME, **options))


def _download(repository: str, file: str, **options: Any) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(hf_hub_download(repository, file, **options))
    except LocalEntryNotFoundError:
        raise FileNotFoundError(
            f"{repository}: {file} is not in the local cache and the Hub cannot be reached; connect once, or pass a local file"
        ) from None
    except RepositoryNotFoundError:
        raise FileNotFoundError(
            f"{repository}: no such repository on the Hub, or no access to it (token=)"
        ) from None
    except EntryNotFoundError:
        raise FileNotFoundError(f"{repository}: the repository has no {file}") from None
    except HfHubHTTPError as error:
        raise FileNotFoundError(
            f"{repository}: {file} could not be downloaded: {str(error).splitlines()[0]}"
        ) from None
