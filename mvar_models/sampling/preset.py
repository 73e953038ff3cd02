"""How a checkpoint draws unless a call says otherwise, as a file that `mvar sweep` writes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mvar_models.config import Share, TopK, TransformerConfig
from mvar_models.files import write_text
from mvar_models.records import check_fields, read_record
from mvar_models.sampling.guidance import RELEASED_SCHEDULE, check_schedule


@dataclass(frozen=True)
class Preset:
    """Settings of sampling, under the names that config.json and a pipeline's call have for them.

    Attributes:
        guidance_scale: Weight of classifier-free guidance at the finest scale; of a call, also one weight per
            scale.
        top_k: Codes to draw from, at most; 0 is off.
        top_p: Probability of the codes to draw from, at least; 0 is off.
        guidance_schedule: How the weight changes from scale to scale, a name in `guidance.SCHEDULES`.

    Numbers may be NumPy's, or tensors.

    Raises:
        TypeError: a value is of another type; the message names it.
        ValueError: a value is out of range.
    """

    guidance_scale: float | tuple[float, ...]
    top_k: TopK
    top_p: Share
    guidance_schedule: str = RELEASED_SCHEDULE  # files written before there was a choice do not have it

    def __post_init__(self) -> None:
        check_fields(self)
        check_schedule(self.guidance_schedule)

    def to_dict(self) -> dict[str, Any]:
        """Return the values by name: `pipeline(labels, **preset.to_dict())`."""
        return asdict(self)

    def write(self, file: Path) -> None:
        """Write a JSON file that `read_preset` reads."""
        write_text(file, json.dumps(self.to_dict(), indent=2) + "\n")


def preset_of(given: Mapping[str, Any], config: TransformerConfig) -> Preset:
    """Return what decides the images of a call: what is given of a preset, else the checkpoint's.

    Raises:
        TypeError: as `Preset`.
        ValueError: as `Preset`.
    """
    values = {field.name: given.get(field.name) for field in fields(Preset)}
    return Preset(**{name: getattr(config, name) if each is None else each for name, each in values.items()})


def recorded(options: Mapping[str, Any], config: TransformerConfig) -> dict[str, Any]:
    """Return options of a call as records hold them: without the schedule if both it and that of the
    checkpoint are the released one, so that records are what they were before there was a choice.
    """
    kept = dict(options)
    if (kept.get("guidance_schedule"), config.guidance_schedule) == (RELEASED_SCHEDULE, RELEASED_SCHEDULE):
        del kept["guidance_schedule"]
    return kept


def read_preset(file: str | os.PathLike[str]) -> Preset:
    """Read a preset.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: one line names the file and the value: it holds something else, or values out of range.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"preset: {path} is no file; a preset is what `mvar sweep` writes")
    preset = read_record(path, Preset)
    if isinstance(preset.guidance_scale, tuple):
        raise ValueError(f"{path}: guidance_scale must be one number, got a list")
    return preset
