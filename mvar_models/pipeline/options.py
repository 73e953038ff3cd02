"""Arguments of a call: their types, and what is made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypedDict

import numpy as np
from torch import Tensor

from mvar_models.sampling.sampler import Sampler, make_sampler

Labels = int | str | Sequence[int | str]


class DrawOptions(TypedDict, total=False):
    """Arguments of `Pipeline.__call__` that do not decide what it returns."""

    seed: int | Sequence[int]
    guidance_scale: float | None
    top_k: int | None
    top_p: float | None
    sampler: str | Sampler
    more_smooth: bool
    batch_size: int
    batch_invariant: bool | None
    on_scale: Callable[[int, Tensor], None] | None
    progress: bool


def as_sequence(labels: Labels) -> Sequence[int | str]:
    """Return the labels as a sequence; one label may come alone."""
    if isinstance(labels, (int, str, np.integer)):
        return [labels]
    return labels


def sampler_of(sampler: str | Sampler, more_smooth: bool) -> Sampler:
    """Return the sampler; `more_smooth` is the older name of one."""
    if more_smooth and sampler not in ("ancestral", "smooth"):
        raise ValueError(f"more_smooth=True is sampler='smooth'; sampler={sampler!r} contradicts it")
    return make_sampler("smooth" if more_smooth else sampler)


def seeds_of(seed: int | Sequence[int], count: int) -> list[int]:
    """Return one seed per image: those given, or consecutive ones."""
    if isinstance(seed, (int, np.integer)):
        return [int(seed) + i for i in range(count)]
    seeds = [int(each) for each in seed]
    if len(seeds) != count:
        raise ValueError(f"seed needs one int per image ({count}), got {len(seeds)}")
    return seeds
