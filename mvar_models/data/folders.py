"""Images in folders: one folder per class."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import Tensor

from mvar_models.data.decode import SUFFIXES, load_image
from mvar_models.data.fingerprint import content_fingerprint, digest
from mvar_models.data.source import ImageSource
from mvar_models.data.split import Split

HELD_OUT = "held_out.txt"

_SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test", "testing"}
_DANGLING = -1


class ClassFolders(ImageSource):
    """A folder with one folder per class, sorted by name; a folder of images alone is one class.

    A file `held_out.txt` in the folder names the images to validate on, one path below the folder per line;
    nothing is trained on those. Without it a fixed share of each class is held out (`draw_split`).

    Images are found at any depth below a class and read on demand. Hidden files are ignored. Empty files,
    dangling links, images outside the class folders and files that are no images are listed in `skipped`.

    Raises:
        ValueError: there is no image, a class has none, the folders are the splits of a dataset, or
            `held_out.txt` names a file that is none of the images.
    """

    def __init__(self, folder: Path, resolution: int) -> None:
        children = sorted(
            child for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")
        )
        classes = children or [folder]
        if len(classes) > 1 and {child.name.lower() for child in classes} <= _SPLIT_NAMES:
            splits = ", ".join(child.name for child in classes)
            raise ValueError(
                f"{folder} holds the splits of a dataset ({splits}), not classes; "
                f"name one of them, for instance {classes[-1]}"
            )
        self.folder = folder
        self.resolution = resolution
        self.files: list[str] = []
        self._sizes: list[int] = []
        labels: list[int] = []
        skipped: dict[str, str] = {}
        num_others = 0
        for label, child in enumerate(classes):
            found = [(path, size) for path, size in _files(child) if Path(path).name != HELD_OUT]
            images = [(path, size) for path, size in found if _is_image(path)]
            num_others += len(found) - len(images)
            empty = {path: _why_empty(size) for path, size in images if size <= 0}
            if len(empty) == len(images):
                raise _no_images(child, len(empty), alone=not children)
            skipped.update(empty)
            self.files += [path for path, size in images if size > 0]
            self._sizes += [size for _, size in images if size > 0]
            labels += [label] * (len(images) - len(empty))
        names = [child.name for child in classes] if children else [folder.resolve().name]
        super().__init__(np.array(labels), names, mirror_safe=True)
        self._held_out = self._read_held_out()
        loose = sum(_is_image(path) for path, _ in _files(folder, deep=False)) if children else 0
        if loose:
            skipped[str(folder)] = f"has {loose} images outside the class folders, which belong to no class"
        if num_others:
            skipped[f"{num_others} files"] = f"do not end in {', '.join(sorted(SUFFIXES))}"
        self.skipped = skipped

    @cached_property
    def fingerprint(self) -> str:
        content = content_fingerprint(self.class_names, self.labels, self._names(), np.array(self._sizes))
        # Without the file the fingerprint is the one that earlier versions wrote into token folders.
        return content if self._held_out is None else digest(content, self._held_out.tobytes())

    @cached_property
    def split(self) -> Split:
        return super().split if self._held_out is None else Split.of_flags(self._held_out)

    def name(self, index: int) -> str:
        return self.files[index]

    def read(self, index: int) -> Tensor:
        return load_image(self.files[index], self.resolution)

    def _names(self) -> list[str]:
        """Return the paths of the images below the folder, with slashes on every system."""
        root = str(self.folder)
        return [Path(os.path.relpath(path, root)).as_posix() for path in self.files]

    def _read_held_out(self) -> np.ndarray | None:
        """Return (N,) bool flags of the images that `held_out.txt` names, or None without such a file."""
        path = self.folder / HELD_OUT
        if not path.is_file():
            return None
        named = {line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()}
        names = self._names()
        missing = sorted(named.difference(names))
        if missing:
            raise ValueError(
                f"{path} names {len(missing)} files that are no images of this folder, first {missing[0]!r}; "
                'a line must be a path below the folder, such as "class/image.png"'
            )
        flags = np.array([name in named for name in names])
        if flags.all():
            raise ValueError(f"{path} names every image, so that none is left to train on")
        return flags


def _is_image(path: str) -> bool:
    return Path(path).suffix.lower() in SUFFIXES


def _why_empty(size: int) -> str:
    return "is a link to nothing" if size == _DANGLING else "is empty (0 bytes)"


def _no_images(folder: Path, empty: int, alone: bool) -> ValueError:
    if alone and not empty:
        return ValueError(
            f"{folder} has no class folders and no images; "
            "put the images of each class into a folder named after it"
        )
    why = f"{empty} empty files" if empty else ", ".join(sorted(SUFFIXES))
    return ValueError(
        f"{folder} has no images ({why}); a class needs at least one, so add some or remove the folder"
    )


def _files(folder: Path, deep: bool = True) -> list[tuple[str, int]]:
    """List (path, size in bytes) of the files below a folder, sorted; the size of a dangling link is -1.

    Hidden names are left out. Links to files are followed, links to folders are not, since they may form a
    loop.
    """
    found = []
    pending = [str(folder)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    pending += [entry.path] if deep else []
                elif entry.is_file():
                    found.append((entry.path, entry.stat().st_size))
                elif entry.is_symlink() and not entry.is_dir():
                    found.append((entry.path, _DANGLING))
    return sorted(found)
