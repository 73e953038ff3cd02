"""Files that appear complete or not at all, and folders that several processes fill together."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place, flushed to disk, when the block ends without an
    error.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file that appears complete or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


class OtherSettings(ValueError):
    """The folder holds what was made with other settings; `changed` names them."""

    def __init__(self, message: str, changed: list[str]) -> None:
        super().__init__(message)
        self.changed = changed


def claim(record: Path, settings: Mapping[str, Any], what: str) -> None:
    """Make the folder of `record` and note `settings` there.

    OtherSettings if it holds `what` made with other settings.
    """
    record.parent.mkdir(parents=True, exist_ok=True)
    if not record.exists():
        write_text(record, json.dumps(settings, indent=2) + "\n")
    compare(record.parent, json.loads(record.read_text(encoding="utf-8")), settings, what)


def compare(folder: Path, found: Mapping[str, Any], settings: Mapping[str, Any], what: str) -> None:
    """OtherSettings naming the settings that differ from those found in `folder`."""
    changed = sorted(key for key in {*found, *settings} if found.get(key) != settings.get(key))
    if changed:
        told = (
            f"{folder} holds {what} made with other settings ({', '.join(changed)} differ); "
            "use those, or remove the folder"
        )
        raise OtherSettings(told, changed)
