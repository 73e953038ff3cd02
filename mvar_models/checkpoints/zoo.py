"""The models that have a name, and the class names of ImageNet, which most of them know. Data only."""

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


def _preset(guidance_scale: float, top_k: int, top_p: float, **more: Any) -> dict[str, Any]:
    return {
        "guidance_scale": guidance_scale,
        "top_k": top_k,
        "top_p": top_p,
        "vqvae": RELEASED_VQVAE,
        **more,
    }


def _var(depth: int, *, parameters: str, fid: float, resolution: int = 256, **more: Any) -> Entry:
    return Entry(
        name=f"var-d{depth}",
        model_type="var",
        repository="FoundationVision/var",
        file=f"var_d{depth}.pth",
        licence="MIT",
        resolution=resolution,
        parameters=parameters,
        preset=_preset(guidance_scale=1.5, top_k=900, top_p=0.96, **more),
        source="github.com/FoundationVision/VAR",
        scores={"FID": fid},
        depth=depth,
    )


def _mvar(
    name: str, *, file: str, depth: int, parameters: str, fid: float, inception: float, preset: dict[str, Any]
) -> Entry:
    return Entry(
        name=name,
        model_type="mvar",
        repository="CVLUESTC/MVAR",
        file=file,
        licence="see its page",
        resolution=256,
        parameters=parameters,
        preset=preset,
        source="huggingface.co/CVLUESTC/MVAR",
        scores={"FID": fid, "IS": inception},
        depth=depth,
    )


def _markov_var(depth: int, *, parameters: str, fid: float, inception: float) -> Entry:
    return Entry(
        name=f"markov-var-d{depth}",
        model_type="markov-var",
        repository="kairoliu/Markov-VAR",
        file=f"d{depth}.pth",
        licence="not stated",
        resolution=256,
        parameters=parameters,
        # Published for depth 24 alone; the released programs have no preset of their own for the others.
        preset=_preset(guidance_scale=5.0, top_k=900, top_p=0.95),
        source="arXiv 2511.23334",
        scores={"FID": fid, "IS": inception},
        depth=depth,
    )


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
        _var(16, parameters="310 M", fid=3.55),
        _var(20, parameters="601 M", fid=2.95),
        _var(24, parameters="1.03 B", fid=2.33),
        _var(30, parameters="2.01 B", fid=1.97),
        _var(36, parameters="2.35 B", fid=2.63, resolution=512, sides=SIDES_512),
        _mvar(
            "mvar-d16",
            file="mvar-d16.pth",
            depth=16,
            parameters="310 M",
            fid=3.01,
            inception=285.17,
            preset=_preset(guidance_scale=2.7, top_k=1200, top_p=0.99),
        ),
        _mvar(
            "mvar-d16-finetuned",
            file="mvar-finetune-d16.pth",
            depth=16,
            parameters="310 M",
            fid=3.37,
            inception=295.35,
            preset=_preset(guidance_scale=2.0, top_k=1200, top_p=0.99),
        ),
        _mvar(
            "mvar-d20-finetuned",
            file="mvar-finetune-d20.pth",
            depth=20,
            parameters="601 M",
            fid=2.83,
            inception=294.31,
            preset=_preset(guidance_scale=1.5, top_k=900, top_p=0.96),
        ),
        _mvar(
            "mvar-d24-finetuned",
            file="mvar-finetune-d24.pth",
            depth=24,
            parameters="1.03 B",
            fid=2.15,
            inception=298.85,
            preset=_preset(guidance_scale=1.4, top_k=900, top_p=0.96),
        ),
        _markov_var(16, parameters="320 M", fid=3.23, inception=256.2),
        _markov_var(20, parameters="623 M", fid=2.44, inception=286.1),
        _markov_var(24, parameters="1.05 B", fid=2.15, inception=310.9),
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
    """Return the entry whose released file has this name, of that kind if given: its preset holds for a copy
    too.
    """
    return next(
        (
            entry
            for entry in ENTRIES.values()
            if entry.file == file and entry.model_type == (model_type or entry.model_type)
        ),
        None,
    )


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
