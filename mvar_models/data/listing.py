"""Files below a folder, as people mean them: without what systems leave there, and each counted once."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from mvar_models.sampling.labels import composed

# Thumbnails, waste baskets, snapshots and forks that NAS, Windows, macOS and Linux keep among the files.
_OF_SYSTEMS = frozenset({
    "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "$recycle.bin", "recycler",
    "system volume information", "__macosx", "lost+found",
})  # fmt: skip


def in_order(entries: Iterable[os.DirEntry[str]]) -> list[os.DirEntry[str]]:
    """Sort by path, alike on every machine."""
    return sorted(entries, key=lambda entry: plain_path(entry.path))


def plain_path(path: str) -> str:
    """Return a path with composed accents and with slashes, as it compares between machines."""
    return composed(path.replace(os.sep, "/"))


@dataclass
class Listing:
    """Lists folders, and notes what it leaves out.

    Hidden names and folders of systems are left out. A link to a folder is followed, unless what it leads to
    is listed anyway: the images would count twice, perhaps once held out and once not.

    Attributes:
        root: the folder that holds all that is listed.
        dangling: links to nothing.
        twice: links that were not followed -> what they lead to.
        systems: names of the folders of systems -> how many.
    """

    root: Path
    dangling: list[str] = field(default_factory=list)
    twice: dict[str, str] = field(default_factory=dict)
    systems: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._root = Path(os.path.realpath(self.root))
        self._listed = {self._root}
        self._above = set(self._root.parents)

    def entries(self, folder: str | Path) -> tuple[list[os.DirEntry[str]], list[os.DirEntry[str]]]:
        """Return the folders and the files in one folder."""
        folders, files = [], []
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
        for entry in in_order(visible):
            if entry.is_symlink() and not os.path.exists(entry.path):
                self.dangling.append(entry.path)
            elif entry.is_file():
                files.append(entry)
            elif entry.is_dir() and entry.name.lower() in _OF_SYSTEMS:
                self.systems[entry.name] += 1
            elif entry.is_dir() and (not entry.is_symlink() or self._follows(entry.path)):
                folders.append(entry)
        return folders, files

    def files(self, folder: str | Path) -> list[os.DirEntry[str]]:
        """Return all files below a folder."""
        found, pending = [], [str(folder)]
        while pending:
            folders, files = self.entries(pending.pop())
            pending += [entry.path for entry in folders]
            found += files
        return in_order(found)

    def _follows(self, link: str) -> bool:
        """Return whether to follow a link to a folder, and remember that it was."""
        target = Path(os.path.realpath(link))
        within = self._listed.intersection((target, *target.parents))
        if within == {self._root} and _hidden(target.relative_to(self._root)):
            within = set()
        if within or target in self._above:
            self.twice[link] = str(target)
            return False
        self._listed.add(target)
        self._above.update(target.parents)
        return True


def _hidden(path: Path) -> bool:
    """Return whether a folder below the root is not listed there."""
    return any(part.startswith(".") or part.lower() in _OF_SYSTEMS for part in path.parts)
