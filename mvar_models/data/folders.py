"""Pictures in folders: one folder per class."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import Tensor

from mvar_models.data.decode import SUFFIXES, load_picture
from mvar_models.data.source import ImageSource, content_fingerprint

_PARTS = {"train", "training", "val", "valid", "validation", "test", "testing"}


class ClassFolders(ImageSource):
    """A folder with one folder per class, names sorted; a folder of pictures alone is one class of its own name.

    Pictures are found at any depth below a class and read when asked for. Hidden files are passed over, empty files are left out, and files
    with other endings than a picture's are counted in `left_out` as a group.

    Raises:
        ValueError: there is no picture, a class has none, or the folders are parts of a divided dataset.
    """

    def __init__(self, folder: Path, resolution: int) -> None:
        children = sorted(
            child for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")
        )
        classes = children or [folder]
        if len(classes) > 1 and {child.name.lower() for child in classes} <= _PARTS:
            parts = ", ".join(child.name for child in classes)
            raise ValueError(
                f"{folder} holds the parts of a divided dataset ({parts}), not classes; give one part, for instance {classes[-1]}"
            )
        self.folder = folder
        self.resolution = resolution
        self.files: list[str] = []
        self._sizes: list[int] = []
        labels: list[int] = []
        unusable: dict[str, str] = {}
        others = 0
        for label, child in enumerate(classes):
            found = _files(child)
            pictures = [(path, size) for path, size in found if Path(path).suffix.lower() in SUFFIXES]
            others += len(found) - len(pictures)
            empty = {
                path: "is empty (0 bytes)" if size == 0 else "is a link to nothing"
                for path, size in pictures
                if size <= 0
            }
            if len(empty) == len(pictures):
                raise _no_pictures(child, len(empty), alone=not children)
            unusable.update(empty)
            self.files += [path for path, size in pictures if size > 0]
            self._sizes += [size for _, size in pictures if size > 0]
            labels += [label] * (len(pictures) - len(empty))
        names = [child.name for child in classes] if children else [folder.resolve().name]
        super().__init__(np.array(labels), names, flips=True)
        self.left_out = unusable
        loose = (
            sum(Path(path).suffix.lower() in SUFFIXES for path, _ in _files(folder, deep=False))
            if children
            else 0
        )
        if loose:
            self.left_out[str(folder)] = (
                f"has {loose} pictures outside the class folders, which belong to no class"
            )
        if others:
            self.left_out[f"{others} files"] = f"do not end in {', '.join(sorted(SUFFIXES))}"

    @cached_property
    def fingerprint(self) -> str:
        root = str(self.folder)
        names = (Path(os.path.relpath(path, root)).as_posix() for path in self.files)
        return content_fingerprint(self.class_names, self.labels, names, np.array(self._sizes))

    def name(self, index: int) -> str:
        return self.files[index]

    def read(self, index: int) -> Tensor:
        return load_picture(self.files[index], self.resolution)


def _no_pictures(folder: Path, empty: int, alone: bool) -> ValueError:
    if alone and not empty:
        return ValueError(
            f"{folder} has no class folders and no pictures; put the pictures of each class into a folder named after it"
        )
    why = f"{empty} empty files" if empty else ", ".join(sorted(SUFFIXES))
    return ValueError(
        f"{folder} has no pictures ({why}); a class needs at least one, so add some or remove the folder"
    )


def _files(folder: Path, deep: bool = True) -> list[tuple[str, int]]:
    """Paths and sizes of what lies in a folder, sorted, -1 for links to nothing; links to files are followed, links to folders and hidden
    names are not."""
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
                    found.append((entry.path, -1))
    return sorted(found)
