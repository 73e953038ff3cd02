"""Images in folders, one folder per class, as people mean them and alike on every machine."""

from __future__ import annotations

import os
import re
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
from torch import Tensor

from mvar_models.data.class_names import class_order, printable, warn_once
from mvar_models.data.source import ImageSource, Split, content_fingerprint
from mvar_models.data.transforms import SUFFIXES, load_image, read_file
from mvar_models.files import digest
from mvar_models.records import read_text
from mvar_models.sampling.labels import composed

HELD_OUT = "held_out.txt"
# Thumbnails, waste baskets, snapshots and forks that NAS, Windows, macOS and Linux keep among the files.
_OF_SYSTEMS = frozenset({
    "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "$recycle.bin", "recycler",
    "system volume information", "__macosx", "lost+found",
})  # fmt: skip

_SPLIT = re.compile(
    r"(train|training|val|valid|validation|dev|eval|evaluation|test|testing)"
    r"([ _.-]?(set|split|data|images|\d+))?",
    re.IGNORECASE,
)
_WITHOUT_CLASS = {"unlabeled", "unlabelled", "unsorted", "images", "masks", "annotations", "labels"}
# Windows hides a second .txt.
_LIKE_HELD_OUT = re.compile(r"held[ _-]?out.*\.(txt|csv|lst|list)", re.IGNORECASE)


class ClassFolders(ImageSource):
    """A folder with one folder per class; a folder of images alone is one class.

    Classes are numbered as `class_order` says. A file `held_out.txt` in the folder names the images to
    validate on, one path below the folder per line; nothing is trained on those. Without it a fixed share of
    each class is held out (`make_split`).

    Images are found at any depth below a class, also behind links, and read on demand. Hidden files are
    ignored. Folders of systems (`_Listing`), empty files, links to nothing, images outside the class folders
    and files that are no images are listed in `skipped`.

    Raises:
        ValueError: there is no image, a class has none, the folders are the splits of a dataset, a class is
            a link to images that count already, or `held_out.txt` names a file that is none of the images.
    """

    def __init__(self, folder: Path, resolution: int | None) -> None:
        self.folder = folder
        self.resolution = resolution
        self.files: list[str] = []
        listing = _Listing(folder)
        children, loose = listing.entries(folder)
        for link, target in listing.twice.items():
            raise ValueError(f"{link} is a link to {target}, whose images would count twice; remove the link")
        _check_layout(folder, [child.name for child in children])
        names = [composed(printable(child.name)) for child in children]
        chosen = class_order(names, str(folder))
        # Not lists: of a million images they and their integers would take a hundred megabytes.
        sizes, stamps, labels = array("q"), array("q"), array("q")
        empty: list[str] = []
        others: Counter[str] = Counter()
        lists = [entry.path for entry in loose if _LIKE_HELD_OUT.fullmatch(entry.name)]
        for label, place in enumerate([children[i].path for i in chosen] or [str(folder)]):
            before = len(empty)
            for entry in listing.files(place) if children else loose:
                if _LIKE_HELD_OUT.fullmatch(entry.name):
                    lists += [entry.path] if children else []
                elif not _is_image(entry.name):
                    others[Path(entry.name).suffix.lower()] += 1
                elif (stat := entry.stat()).st_size:
                    self.files.append(entry.path)
                    sizes.append(stat.st_size)
                    stamps.append(stat.st_mtime_ns)
                    labels.append(label)
                else:
                    empty.append(entry.path)
            if label not in labels[-1:]:
                raise _no_images(Path(place), len(empty) - before, has_classes=bool(children))
        own = composed(printable(folder.resolve().name))
        super().__init__(np.array(labels), [names[i] for i in chosen] or [own], mirror_safe=True)
        self._sizes, self._stamps = np.array(sizes), np.array(stamps)
        self._held_out = self._read_held_out()
        self.skipped = _skipped(empty, listing, others, str(folder), loose if children else [])
        read = folder / HELD_OUT
        for path in lists:
            if not (read.is_file() and read.samefile(path)):
                reason = f"is not read; what is held out is listed in {read}"
                self.skipped[printable(path)] = reason
                warn_once(f"{printable(path)} {reason}")

    @cached_property
    def fingerprint(self) -> str:
        content = content_fingerprint(self.class_names, self.labels, self._names(), self._sizes)
        return content if self._held_out is None else digest(content, self._held_out.tobytes())

    @cached_property
    def split(self) -> Split:
        return super().split if self._held_out is None else Split.of_flags(self._held_out)

    @property
    def stamps(self) -> np.ndarray:
        """(N,) int64: when each file was last changed, in nanoseconds."""
        return self._stamps

    def raw(self, index: int) -> bytes:
        return read_file(self.files[index])

    def name(self, index: int) -> str:
        return printable(self.files[index])

    def read(self, index: int) -> Tensor:
        return load_image(self.files[index], self.resolution)

    def _names(self) -> list[str]:
        """Return the paths of the images below the folder, the same on every machine."""
        start = len(os.path.join(self.folder, ""))
        return [_plain_path(path[start:]) for path in self.files]

    def _read_held_out(self) -> np.ndarray | None:
        """Return (N,) bool flags of the images that `held_out.txt` names, or None without such a file."""
        path = self.folder / HELD_OUT
        if not path.is_file():
            return None
        numbers = {name: number for number, name in enumerate(self._names())}
        flags = np.zeros(len(self), dtype=bool)
        for line, text in enumerate(read_text(path).splitlines(), 1):
            named = composed(text.strip())
            # Backslashes are Windows', unless a name holds one.
            plain = str(PurePosixPath(named.replace("\\", "/")))
            number = numbers.get(named, numbers.get(plain))
            if named and number is None:
                raise ValueError(
                    f"{path}: line {line} names {named!r}, which is no image of this folder; "
                    'a line must be a path below the folder, such as "class/image.png"'
                )
            if number is not None:
                flags[number] = True
        if flags.all() or not flags.any():
            held, left = ("every", "train") if flags.all() else ("no", "validate")
            raise ValueError(
                f"{path} names {held} image, so that none is left to {left} on; "
                "without the file a share is held out"
            )
        return flags


@dataclass
class _Listing:
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
        for entry in _in_order(visible):
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
        below, pending = [], [str(folder)]
        while pending:
            folders, files = self.entries(pending.pop())
            pending += [entry.path for entry in folders]
            below += files
        return _in_order(below)

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


def _in_order(entries: Iterable[os.DirEntry[str]]) -> list[os.DirEntry[str]]:
    """Sort by path, alike on every machine."""
    return sorted(entries, key=lambda entry: _plain_path(entry.path))


def _plain_path(path: str) -> str:
    """Return a path with composed accents and with slashes, as it compares between machines."""
    return composed(path.replace(os.sep, "/"))


def _check_layout(folder: Path, names: list[str]) -> None:
    """Look for folders that are no classes: splits, images without a class, one folder around the classes."""
    _refuse_splits(folder, names)
    for name in names if len(names) > 1 else []:
        if name.lower() in _WITHOUT_CLASS:
            warn_once(f"{folder / name} is taken for a class; if its images have none, move it elsewhere")
    inner = folder
    while len(names) == 1:
        below, files = _Listing(inner).entries(inner / names[0])
        if not below or any(_is_image(file.name) for file in files):
            break
        inner, names = inner / names[0], [entry.name for entry in below]
        _refuse_splits(inner, names)
    around = inner.relative_to(folder).parts
    if any(map(_SPLIT.fullmatch, around)):
        raise ValueError(
            f"{folder} holds a split of a dataset ({'/'.join(around)}), not classes; name {inner}"
        )
    if around:
        listed = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
        warn_once(
            f"all images of {folder} are taken for one class, {around[0]!r}; "
            f"if its folders ({listed}) are the classes, name {inner}"
        )


def _refuse_splits(folder: Path, names: list[str]) -> None:
    splits = [name for name in names if _SPLIT.fullmatch(name)]
    train = [name for name in splits if name.lower().startswith("train")]
    if len(splits) > 1 and (train or len(splits) == len(names)):
        raise ValueError(
            f"{folder} holds the splits of a dataset ({', '.join(splits)}), not classes; "
            f"name one of them, for instance {folder / (train or splits)[0]}"
        )


def _skipped(
    empty: list[str], listing: _Listing, others: Counter[str], folder: str, loose: list[os.DirEntry[str]]
) -> dict[str, str]:
    """Return name -> reason of what is no example."""
    skipped = dict.fromkeys(empty, "is empty (0 bytes)")
    skipped |= dict.fromkeys(listing.dangling, "is a link to nothing")
    for path, target in listing.twice.items():
        skipped[path] = f"is a link to {target}, whose images would count twice"
    if count := sum(_is_image(entry.name) for entry in loose):
        skipped[folder] = f"has {count} images outside the class folders, which belong to no class"
    if listing.systems:
        kinds = ", ".join(sorted(listing.systems))
        skipped[f"{listing.systems.total()} folders"] = f"are the system's, not yours: {kinds}"
    if count := others.total():
        kinds = ", ".join(
            f"{number} {suffix or 'without one'}" for suffix, number in others.most_common() if number
        )
        skipped[f"{count} files"] = f"are left out for their suffixes: {kinds}"
    return {printable(name): printable(reason) for name, reason in skipped.items()}


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES


def _no_images(folder: Path, empty: int, has_classes: bool) -> ValueError:
    if not has_classes and not empty:
        return ValueError(
            f"{folder} has no class folders and no images; "
            "put the images of each class into a folder named after it"
        )
    why = f"{empty} empty files" if empty else ", ".join(sorted(SUFFIXES))
    return ValueError(
        f"{folder} has no images ({why}); a class needs at least one, so add some or remove the folder"
    )
