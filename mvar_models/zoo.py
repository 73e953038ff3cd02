"""The registry: name -> where the weights are, what they are, how to sample them."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from mvar_models.checkpoints import WEIGHTS_NAME, Source
from mvar_models.config import CONFIG_NAME, SIDES_512

_EMBEDDED = "embedded"


@dataclass(frozen=True)
class Entry:
    """One checkpoint. `repository` is a Hub id, or "embedded" for weights inside this package; `file` is a file there, or a folder.

    preset: configuration values that a released file cannot carry (sampling preset, VQVAE, sides). fid: as published for 50,000 pictures, by
    `source`; never measured here. parameters: rounded; what a model itself counts is `num_parameters()`.
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
    fid: float | None = None


_VAE = "vae-ch160v4096z32"
_VAR_SAMPLING = {"guidance_scale": 1.5, "top_k": 900, "top_p": 0.96, "vqvae": _VAE}


def _var(name: str, file: str, parameters: str, fid: float, resolution: int = 256, **extra: Any) -> Entry:
    preset = {**_VAR_SAMPLING, **extra}
    return Entry(name, "var", "FoundationVision/var", file, "MIT", resolution, parameters, preset, "github.com/FoundationVision/VAR", fid)


def _mvar(name: str, file: str, parameters: str, fid: float, guidance_scale: float, top_k: int, top_p: float) -> Entry:
    preset = {"guidance_scale": guidance_scale, "top_k": top_k, "top_p": top_p, "vqvae": _VAE}
    return Entry(name, "mvar", "CVLUESTC/MVAR", file, "see its page", 256, parameters, preset, "huggingface.co/CVLUESTC/MVAR", fid)


def _digits(name: str, model_type: str, parameters: str) -> Entry:
    return Entry(name, model_type, _EMBEDDED, name, "MIT", 32, parameters, {}, "trained by this project")


_ENTRIES = {
    entry.name: entry
    for entry in (
        Entry(_VAE, "vqvae", "FoundationVision/var", "vae_ch160v4096z32.pth", "MIT", 256, "109 M", {}, "arXiv 2404.02905"),
        _var("var-d16", "var_d16.pth", "310 M", 3.55),
        _var("var-d20", "var_d20.pth", "601 M", 2.95),
        _var("var-d24", "var_d24.pth", "1.03 B", 2.33),
        _var("var-d30", "var_d30.pth", "2.01 B", 1.97),
        _var("var-d36", "var_d36.pth", "2.35 B", 2.63, resolution=512, sides=SIDES_512),
        _mvar("mvar-d16", "mvar-d16.pth", "310 M", 3.01, 2.7, 1200, 0.99),
        _mvar("mvar-d16-finetuned", "mvar-finetune-d16.pth", "310 M", 3.37, 2.0, 1200, 0.99),
        _mvar("mvar-d20-finetuned", "mvar-finetune-d20.pth", "601 M", 2.83, 1.5, 900, 0.96),
        _mvar("mvar-d24-finetuned", "mvar-finetune-d24.pth", "1.03 B", 2.15, 1.4, 900, 0.96),
        _digits("vae-digits", "vqvae", "0.33 M"),
        _digits("var-digits", "var", "0.98 M"),
        _digits("mvar-digits", "mvar", "0.98 M"),
    )
}


def list_models(pattern: str = "*") -> list[str]:
    """Names in the zoo that match a shell pattern, such as "mvar*"."""
    return fnmatch.filter(_ENTRIES, pattern)


def find(name: str) -> Entry | None:
    """The entry of that name, or None."""
    return _ENTRIES.get(name)


def fetch(entry: Entry, model_type: str, **hub_options: Any) -> Source:
    """The entry's files on this disk, downloaded where need be. A VAR may be loaded where an MVAR is asked for only through `from_var`."""
    if entry.model_type != model_type:
        raise ValueError(f"{entry.name} is a {entry.model_type} model, expected {model_type}")
    if entry.repository == _EMBEDDED:
        folder = Path(str(resources.files("mvar_models"))) / "weights" / "digits" / entry.file
        if not (folder / WEIGHTS_NAME).is_file():
            raise FileNotFoundError(f"{folder} is missing; this installation came without its weights, install it again")
        return Source(folder / WEIGHTS_NAME, folder / CONFIG_NAME)
    return Source(_download(entry.repository, entry.file, **hub_options), None, entry.preset)


def looks_like_hub_id(name: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", name) is not None


def fetch_repository(name: str, *, revision: str | None = None, subfolder: str = "", **hub_options: Any) -> Source:
    """config.json and model.safetensors of a Hub repository, or of a folder in it, written as org/name or org/name@revision."""
    repository, _, pinned = name.partition("@")
    options = {"revision": pinned or revision, **hub_options}
    inside = f"{subfolder}/" if subfolder else ""
    weights = _download(repository, inside + WEIGHTS_NAME, **options)
    return Source(weights, _download(repository, inside + CONFIG_NAME, **options))


def _download(repository: str, file: str, **options: Any) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(hf_hub_download(repository, file, **options))
    except LocalEntryNotFoundError:
        raise FileNotFoundError(
            f"{repository}: {file} is not in the local cache and the Hub cannot be reached; connect once, or pass a local file"
        ) from None
    except RepositoryNotFoundError:
        raise FileNotFoundError(f"{repository}: no such repository on the Hub, or no access to it (token=)") from None
    except EntryNotFoundError:
        raise FileNotFoundError(f"{repository}: the repository has no {file}") from None
    except HfHubHTTPError as error:
        raise FileNotFoundError(f"{repository}: {file} could not be downloaded: {str(error).splitlines()[0]}") from None
