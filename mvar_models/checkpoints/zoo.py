"""The zoo: named checkpoints, and the class names of ImageNet, which most of them know. Data only."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib import resources
from typing import Any

from mvar_models.config import SIDES_512

EMBEDDED = "embedded"
RELEASED_VQVAE = "vae-ch160v4096z32"
IMAGENET_CLASSES = 1000
_WORDNET_ID = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class Entry:
    """One checkpoint.

    Attributes:
        name: What `from_pretrained` takes.
        model_type: Name of the architecture's row in the registry.
        repository: Hub id, or "embedded" for weights inside this package.
        file: File in the repository, or folder inside this package.
        licence: Licence of the weights.
        resolution: Side of the images in pixels.
        parameters: Rounded; `num_parameters()` counts them.
        preset: Settings that a released file cannot carry (sampling preset, VQVAE, sides).
        source: Where the figures come from.
        scores: Published by `source` for 50,000 images; never measured here.
        depth: Depth of a transformer. A file of another depth under this name gets a warning.
        revision: Branch, tag or commit used if the caller names none.
    """

    name: str
    model_type: str
    repository: str
    file: str
    licence: str
    resolution: int
    parameters: str
    preset: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    depth: int | None = None
    revision: str = "main"


# Repository, licence and source of each family of released transformers.
_FAMILIES = {
    "var": ("FoundationVision/var", "MIT", "github.com/FoundationVision/VAR"),
    "var-neon": ("sinaalemohammad/Neon", "MIT", "arXiv 2510.03597"),
    "mvar": ("CVLUESTC/MVAR", "see its page", "huggingface.co/CVLUESTC/MVAR"),
    "markov-var": ("kairoliu/Markov-VAR", "not stated", "arXiv 2511.23334"),
}


def _released(
    name: str,
    file: str,
    parameters: str,
    preset: tuple[float, int, float],
    scores: Mapping[str, float],
    resolution: int = 256,
    **more: Any,
) -> Entry:
    """Return the entry of a released transformer; `preset` is guidance_scale, top_k and top_p."""
    kind, _, variant = name.partition("-d")
    depth, _, made = variant.partition("-")
    repository, licence, source = _FAMILIES.get(f"{kind}-{made}", _FAMILIES[kind])
    return Entry(
        name=name,
        model_type=kind,
        repository=repository,
        file=file,
        licence=licence,
        resolution=resolution,
        parameters=parameters,
        preset={**dict(zip(("guidance_scale", "top_k", "top_p"), preset)), "vqvae": RELEASED_VQVAE, **more},
        source=source,
        scores=scores,
        depth=int(depth),
    )


_VAR_PRESET = (1.5, 900, 0.96)
# Published for depth 24 alone; the released programs have no preset of their own for the others.
_MARKOV_PRESET = (5.0, 900, 0.95)


def _embedded(family: str, name: str, *, model_type: str, resolution: int, parameters: str) -> Entry:
    return Entry(
        name=name,
        model_type=model_type,
        repository=EMBEDDED,
        file=f"{family}/{name}",
        licence="MIT",
        resolution=resolution,
        parameters=parameters,
    )


ENTRIES: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(
            name=RELEASED_VQVAE,
            model_type="vqvae",
            repository="FoundationVision/var",
            file="vae_ch160v4096z32.pth",
            licence="MIT",
            resolution=256,
            parameters="109 M",
            source="arXiv 2404.02905",
        ),
        _released("var-d16", "var_d16.pth", "310 M", _VAR_PRESET, {"FID": 3.55}),
        _released("var-d20", "var_d20.pth", "601 M", _VAR_PRESET, {"FID": 2.95}),
        _released("var-d24", "var_d24.pth", "1.03 B", _VAR_PRESET, {"FID": 2.33}),
        _released("var-d30", "var_d30.pth", "2.01 B", _VAR_PRESET, {"FID": 1.97}),
        _released("var-d36", "var_d36.pth", "2.35 B", _VAR_PRESET, {"FID": 2.63}, 512, sides=SIDES_512),
        _released("var-d16-neon", "Neon_VARd16_imagenet256.pth", "310 M", (2.8, 900, 0.95), {"FID": 2.01}),
        _released(
            "var-d36-neon",
            "Neon_VARd36_imagenet512.pth",
            "2.35 B",
            (3.2, 900, 0.95),
            {"FID": 1.70},
            512,
            sides=SIDES_512,
        ),
        _released("mvar-d16", "mvar-d16.pth", "310 M", (2.7, 1200, 0.99), {"FID": 3.01, "IS": 285.17}),
        _released(
            "mvar-d16-finetuned",
            "mvar-finetune-d16.pth",
            "310 M",
            (2.0, 1200, 0.99),
            {"FID": 3.37, "IS": 295.35},
        ),
        _released(
            "mvar-d20-finetuned",
            "mvar-finetune-d20.pth",
            "601 M",
            (1.5, 900, 0.96),
            {"FID": 2.83, "IS": 294.31},
        ),
        _released(
            "mvar-d24-finetuned",
            "mvar-finetune-d24.pth",
            "1.03 B",
            (1.4, 900, 0.96),
            {"FID": 2.15, "IS": 298.85},
        ),
        _released("markov-var-d16", "d16.pth", "320 M", _MARKOV_PRESET, {"FID": 3.23, "IS": 256.2}),
        _released("markov-var-d20", "d20.pth", "623 M", _MARKOV_PRESET, {"FID": 2.44, "IS": 286.1}),
        _released("markov-var-d24", "d24.pth", "1.05 B", _MARKOV_PRESET, {"FID": 2.15, "IS": 310.9}),
        _embedded("digits", "vae-digits", model_type="vqvae", resolution=32, parameters="0.33 M"),
        _embedded("digits", "var-digits", model_type="var", resolution=32, parameters="0.98 M"),
        _embedded("digits", "mvar-digits", model_type="mvar", resolution=32, parameters="0.98 M"),
        _embedded("emoji", "vae-emoji", model_type="vqvae", resolution=64, parameters="1.05 M"),
        _embedded("emoji", "var-emoji", model_type="var", resolution=64, parameters="5.31 M"),
        _embedded("emoji", "mvar-emoji", model_type="mvar", resolution=64, parameters="5.31 M"),
    )
}


def list_models(pattern: str = "*") -> list[str]:
    """Return the names in the zoo that match a shell pattern, such as "mvar*"."""
    return fnmatch.filter(ENTRIES, pattern)


def find(name: str) -> Entry | None:
    """Return the entry of a name, which may pin a revision ("var-d16@REVISION"), or None."""
    plain, _, revision = name.partition("@")
    entry = ENTRIES.get(plain)
    return replace(entry, revision=revision) if entry and revision else entry


def of_file(file: str, model_type: str | None = None) -> Entry | None:
    """Return the entry whose released file has this name, of that kind if given; a copy shares its preset."""
    entries = [entry for entry in ENTRIES.values() if entry.file == file]
    return next((entry for entry in entries if model_type in (None, entry.model_type)), None)


def in_repository(repository: str) -> list[str]:
    """Return the names whose files lie in a Hub repository."""
    return [entry.name for entry in ENTRIES.values() if entry.repository == repository]


@lru_cache(maxsize=1)
def imagenet_names() -> tuple[str, ...]:
    """Return ImageNet's class names by label: "golden retriever" is 207.

    They are WordNet lemmas; synonyms are separated by ", ".
    """
    text = (resources.files("mvar_models.checkpoints") / "imagenet_names.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def are_wordnet_ids(names: Sequence[str]) -> bool:
    """Return whether all names are WordNet ids, as ImageNet's folders often are, in its labels' order."""
    return bool(names) and all(_WORDNET_ID.fullmatch(name) for name in names)
