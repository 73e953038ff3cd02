"""Where the weights of a feature network come from: a file that the user names, or a download on request."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mvar_models.files import file_digest

# What `weights` says instead of a path to allow a download.
DOWNLOAD = "download"


@dataclass(frozen=True)
class WeightsFile:
    """A file that can be downloaded.

    Attributes:
        features: The feature network that it is for.
        name: Its name in PyTorch's cache, which other programs may have filled.
        url: Where it comes from.
        sha256: Digest of its bytes.
        size: Number of bytes.
    """

    features: str
    name: str
    url: str
    sha256: str
    size: int

    @property
    def cached(self) -> Path:
        """The file's path in PyTorch's cache, whether it exists or not."""
        return Path(torch.hub.get_dir()) / "checkpoints" / self.name


def find_weights(file: WeightsFile, weights: str | os.PathLike[str] | None) -> Path:
    """Return a file of weights.

    Args:
        file: The released file.
        weights: A file that the user names; "download" to take the cached file, downloading it if need be;
            None for the cached file alone.

    Raises:
        FileNotFoundError: no such file, or none in the cache.
        ValueError: the cached or downloaded file has another digest.
        OSError: the download failed.
    """
    if weights is not None and os.fspath(weights) != DOWNLOAD:
        if not Path(weights).is_file():
            raise FileNotFoundError(f"weights: {weights} is no file; {file.features} needs {file.name}")
        return Path(weights)
    if not file.cached.is_file():
        if weights is None:
            raise FileNotFoundError(
                f"weights: {file.features} needs {file.name}; name the file, or say {DOWNLOAD!r} to download "
                f"{file.size / 1e6:,.0f} MB from {file.url}"
            )
        _download(file)
    if file_digest(file.cached) != file.sha256:
        raise ValueError(
            f"weights: {file.cached} has not the digest of {file.name}; remove it, and try again"
        )
    return file.cached


def check_state(
    state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], path: Path, what: str
) -> dict[str, Tensor]:
    """Return the tensors of a state dict that a network needs; others are left out.

    Args:
        state: Of the file.
        shapes: Name -> expected shape.
        path, what: The file, and what it should be, for error messages.

    Raises:
        ValueError: a tensor is missing, has another shape, or holds no floating-point numbers.
    """
    for name, shape in shapes.items():
        found = state.get(name)
        if not isinstance(found, Tensor):
            raise ValueError(f"{path} is not {what}: it has no {name}")
        if tuple(found.shape) != shape or not found.is_floating_point():
            raise ValueError(
                f"{path} is not {what}: {name} is {list(found.shape)} {found.dtype}, "
                f"expected {list(shape)} float"
            )
    return {name: state[name] for name in shapes}


def _download(file: WeightsFile) -> None:
    file.cached.parent.mkdir(parents=True, exist_ok=True)
    try:
        # Writes beside the file, compares the digest, and moves it there only then.
        torch.hub.download_url_to_file(file.url, str(file.cached), hash_prefix=file.sha256)
    except OSError as error:
        raise OSError(
            f"{file.url} could not be downloaded ({error}); download it yourself and name it"
        ) from None
    except RuntimeError as error:
        raise ValueError(f"{file.url} is not the expected file ({error})") from None
