"""What decides an image beside its label and seed, from flags and files to the loop over scales.

The fields have the names that config.json, preset files, records, flags and `pipeline(...)` have for them. A
new option is a field here, one of `TransformerConfig` for its default, and the code that acts on it.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, TypedDict

from mvar_models.config import Count, Drafters, Share, TopK, TransformerConfig
from mvar_models.files import write_text
from mvar_models.networks.scalekv import CACHE_RULES
from mvar_models.networks.scorer import load_scorer
from mvar_models.records import Must, check_fields, read_record

# Name -> share of the guidance scale at a progress from 0 (coarsest scale) to 1 (finest).
GUIDANCE_SCHEDULES: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: progress,
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: (1 - math.cos(math.pi * progress)) / 2,
}
RELEASED_SCHEDULE = "linear"

# Name -> where the class is.
SAMPLERS: dict[str, str] = {
    "ancestral": "mvar_models.sampling.samplers:Sampler",
    "smooth": "mvar_models.sampling.samplers:SmoothSampler",
    "scored": "mvar_models.sampling.lsrs:ScoredSampler",
}

_Slice = Annotated[
    str,
    Must(
        "that slices the scales, such as 1: or 3:5", lambda text: re.fullmatch(r"-?\d{0,4}:-?\d{0,4}", text)
    ),
]


def _option(help: str, **more: Any) -> Any:
    """Return a field's metadata; the command line makes its flag from them."""
    return {"help": help, "shown": "the checkpoint's", **more}


@dataclass(frozen=True)
class SamplingSettings:
    """Settings of sampling; numbers may be NumPy's, or tensors.

    Attributes:
        guidance_scale: Weight of classifier-free guidance at the finest scale, or one weight per scale.
        top_k: Sample from this many codes at most; 0 is off.
        top_p: Sample from the fewest codes of at least this probability; 0 is off.
        guidance_schedule: How the weight changes from scale to scale, a name in `GUIDANCE_SCHEDULES`.
        sampler: How codes are chosen, a name in `SAMPLERS` or a `Sampler`.
        scorer: Run of `mvar train-scorer`, or folder or Hub id of a scorer; the sampler is then "scored".
        candidates: Candidates that the scorer chooses from at a scale; with 1 it does nothing.
        candidate_scales: Scales with candidates, as a slice: "1:" is all but the coarsest.
        cache_budget: Keys that a layer keeps between scales, as a share of the tokens before the last one;
            1 keeps all. Only for models that attend to all coarser scales.
        cache_rule: Which keys stay, one of `CACHE_RULES`.
        cache_drafters: Pairs of a layer and a scale that keep more than the others, as `mvar calibrate-cache`
            finds them.

    Raises:
        TypeError: a value is of another type; the message names it.
        ValueError: a value is out of range, or an unknown name.
    """

    guidance_scale: float | tuple[float, ...] = field(metadata=_option("Weight at the finest scale."))
    top_k: TopK = field(metadata=_option("0 turns it off."))
    top_p: Share = field(metadata=_option("0 turns it off."))
    guidance_schedule: str = field(
        default=RELEASED_SCHEDULE,
        metadata=_option("How guidance changes from scale to scale.", choices=GUIDANCE_SCHEDULES.keys),
    )
    sampler: Any = field(
        default="ancestral", metadata=_option("How codes are chosen.", choices=SAMPLERS.keys)
    )
    scorer: str | None = field(
        default=None, metadata=_option("Run of `mvar train-scorer`: keep the best of several candidates.")
    )
    candidates: Count = field(default=4, metadata=_option("With --scorer: candidates per scale."))
    candidate_scales: _Slice = field(
        default="1:", metadata=_option("With --scorer: scales with candidates, a slice such as 1: or 3:5.")
    )
    cache_budget: Share = field(
        default=1.0, metadata=_option("Share of the KV cache that VAR keeps (ScaleKV); 1 keeps all.")
    )
    cache_rule: str = field(
        default=CACHE_RULES[0],
        metadata=_option("Which keys stay: paper's, released code's, or a control.", choices=CACHE_RULES),
    )
    cache_drafters: Drafters = ()

    def __post_init__(self) -> None:
        check_fields(self)
        if self.guidance_schedule not in GUIDANCE_SCHEDULES:
            names = ", ".join(GUIDANCE_SCHEDULES)
            raise ValueError(f"guidance_schedule must be one of {names}, got {self.guidance_schedule!r}")
        if self.cache_rule not in CACHE_RULES:
            raise ValueError(f"cache_rule must be one of {', '.join(CACHE_RULES)}, got {self.cache_rule!r}")
        # Sampler itself stands above this file.
        known = self.sampler in SAMPLERS if isinstance(self.sampler, str) else hasattr(self.sampler, "choose")
        if not known:
            raise ValueError(
                f"sampler must be one of {', '.join(SAMPLERS)} or a Sampler, got {self.sampler!r}"
            )
        if self.scorer is not None and self.sampler == "ancestral":
            object.__setattr__(self, "sampler", "scored")
        if (self.scorer is None) == (self.sampler == "scored"):
            raise ValueError(
                f"scorer and the sampler 'scored' go together, got {self.scorer!r} and {self.sampler!r}"
            )

    @classmethod
    def of(cls, config: TransformerConfig, **given: Any) -> SamplingSettings:
        """Return the settings given, and those of the checkpoint in place of None and of what is left out.

        Raises:
            OSError, ValueError: a value is wrong, or there is no such scorer, or it is of another ladder.
        """
        unknown = given.keys() - {each.name for each in fields(cls)}
        if unknown:
            raise TypeError(f"unexpected keyword arguments: {', '.join(sorted(unknown))}")
        values = {each.name: given.get(each.name) for each in fields(cls)}
        settings = cls(
            **{name: getattr(config, name) if each is None else each for name, each in values.items()}
        )
        if settings.scorer is not None:  # before the first image, which may be hours of sampling away
            load_scorer(settings.scorer).check_fits(config)
        return settings

    def to_dict(self) -> dict[str, Any]:
        """Return the values by name, as JSON holds them: `pipeline(labels, **settings.to_dict())`.

        Raises:
            ValueError: the sampler is an object, which no file can hold.
        """
        if not isinstance(self.sampler, str):
            raise ValueError(f"sampler must be a name in SAMPLERS to be recorded, got {self.sampler!r}")
        return {**asdict(self), "cache_drafters": [list(pair) for pair in self.cache_drafters]}

    def write(self, file: Path) -> None:
        """Write a preset: a JSON file that `read_preset` reads."""
        write_text(file, json.dumps(self.to_dict(), indent=2) + "\n")


class SamplingOptions(TypedDict, total=False):
    """`SamplingSettings` as keyword arguments of a call."""

    guidance_scale: float | Sequence[float] | None
    top_k: int | None
    top_p: float | None
    guidance_schedule: str | None
    sampler: Any
    scorer: str | None
    candidates: int | None
    candidate_scales: str | None
    cache_budget: float | None
    cache_rule: str | None
    cache_drafters: Sequence[tuple[int, int]] | None


def read_preset(file: str | os.PathLike[str]) -> SamplingSettings:
    """Read a preset.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: one line names the file and the value: it holds something else, or values out of range.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"preset: {path} is no file; a preset is what `mvar sweep` writes")
    preset = read_record(path, SamplingSettings)
    if isinstance(preset.guidance_scale, tuple):
        raise ValueError(f"{path}: guidance_scale must be one number, got a list")
    return preset
