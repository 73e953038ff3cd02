"""A folder of parts that several processes, or several runs of a command, fill together: the first comer notes the settings, others compare."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mvar_models.checkpoints import write_text


class OtherSettings(ValueError):
    """The folder holds what was made with other settings; `changed` names them."""

    def __init__(self, message: str, changed: list[str]) -> None:
        super().__init__(message)
        self.changed = changed


def claim(record: Path, settings: Mapping[str, Any], what: str) -> None:
    """Make the folder of `record` and note `settings` there; OtherSettings if it holds `what` made with other settings."""
    record.parent.mkdir(parents=True, exist_ok=True)
    if not record.exists():
        write_text(record, json.dumps(settings, indent=2) + "\n")
    compare(record.parent, json.loads(record.read_text(encoding="utf-8")), settings, what)


def compare(folder: Path, found: Mapping[str, Any], settings: Mapping[str, Any], what: str) -> None:
    """OtherSettings naming the settings that differ from those found in `folder`."""
    changed = sorted(key for key in {*found, *settings} if found.get(key) != settings.get(key))
    if changed:
        told = f"{folder} holds {what} made with other settings ({', '.join(changed)} differ); use those, or remove the folder"
        raise OtherSettings(told, changed)
