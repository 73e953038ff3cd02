"""Open what `--data` names as labelled images."""

from __future__ import annotations

import os
from pathlib import Path

from mvar_models.checkpoints.locate import looks_like_hub_id
from mvar_models.data import hub_datasets
from mvar_models.data.digits import Digits
from mvar_models.data.folders import ClassFolders
from mvar_models.data.source import ImageSource

DIGITS = "digits"


def open_images(data: str | os.PathLike[str], resolution: int | None = None) -> ImageSource:
    """Open a dataset of images.

    Args:
        data: "digits"; a folder with one folder of images per class (or of images alone: one class); a
            .parquet file, a folder of them, or a folder of `datasets.save_to_disk`; or a Hugging Face dataset
            as org/name. Parquet and datasets may end in ":split" (default: train), or ":config:split"; a
            folder may end in ":name", which is the folder of that name in it.
        resolution: side of the images in pixels; None leaves it to `ImageSource.at`.

    Raises:
        FileNotFoundError: nothing of that name.
        ValueError: it holds nothing to train on; the message says what is missing.
    """
    text = str(data)
    if text == DIGITS:
        return Digits(resolution)
    check_data_exists(text)
    place, part = _place_and_part(text)
    path = Path(place)
    if hub_datasets.is_local(path) or not path.exists():
        return hub_datasets.HubDataset(place, resolution, part)
    return ClassFolders(path / part, resolution)


def check_data_exists(data: str | os.PathLike[str]) -> None:
    """Check that there is something to open, before anything is downloaded for it.

    The name of a Hub dataset is only checked for its form.

    Raises:
        FileNotFoundError: nothing of that name here, and it is no dataset id.
    """
    text = str(data)
    place, part = _place_and_part(text)
    path = Path(place)
    local = hub_datasets.is_local(path)
    if text == DIGITS or local or (path / part).is_dir():
        return
    if path.is_dir():
        raise FileNotFoundError(f"{path} has no folder {part!r}, which {text} asks for")
    if not path.exists() and looks_like_hub_id(place):
        return
    if place == DIGITS:
        raise FileNotFoundError(f"{DIGITS} has no parts, {text} asks for {part!r}")
    what = f"{path} is a file of another kind" if path.is_file() else f"{place}: nothing of that name"
    raise FileNotFoundError(
        f"{what}; data must be 'digits' or a folder (one folder of images per class, or what `mvar tokenize` "
        "wrote), a .parquet file, or a Hugging Face dataset as org/name"
    )


def _place_and_part(data: str) -> tuple[str, str]:
    """Split "place:split" or "place:config:split"; the longest path that exists is taken whole."""
    colons = [index for index, letter in enumerate(data) if letter == ":"]
    ends = [len(data), *reversed(colons)]
    end = next((end for end in ends if end and Path(data[:end]).exists()), min(ends))
    return data[:end], data[end + 1 :]
