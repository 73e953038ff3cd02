"""Classes of two sets by name: number 0 of one may be number 2 of the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from mvar_models.checkpoints.imagenet import are_wordnet_ids
from mvar_models.sampling.labels import composed, label_number

_SHOWN = 3


def renumbered(labels: np.ndarray, names: Sequence[str] | None, others: Sequence[str] | None) -> np.ndarray:
    """Return labels as the numbers that another set has for the same classes, -1 where it has none.

    A name is looked up as `label_number` does, so synonyms and numbers count as names. Where one of the sets
    has no names, or those of ImageNet's folders, numbers are compared with numbers.

    Args:
        labels: (n,) classes of images.
        names: Their names by number, "" where one is not known; None where none is.
        others: The other set's names.
    """
    if names is not None and others is not None:
        first, second = tuple(map(composed, names)), tuple(map(composed, others))
        wordnet = len(first) == len(second) and are_wordnet_ids(first) != are_wordnet_ids(second)
        if first == second or wordnet:
            return labels
    present, places = np.unique(labels, return_inverse=True)
    called = [str(number) if names is None else composed(names[number]) for number in present]
    if others is None:
        # Folders may be called by the numbers of their classes.
        known = all(name.isdecimal() for name in called)
        return np.array([int(name) for name in called], dtype=np.int64)[places] if known else labels
    theirs = list(map(composed, others))
    count = Counter(theirs)
    unique = {name: number for number, name in enumerate(theirs) if count[name] == 1}

    def number_of(name: str) -> int:
        try:
            return unique[name] if name in unique else label_number(name, len(theirs), theirs)
        except ValueError:
            return -1

    return np.array([number_of(name) if name else -1 for name in called], dtype=np.int64)[places]


def listed(numbers: np.ndarray, names: Sequence[str] | None) -> str:
    """Return the names of some classes, or their numbers, the first three of many."""
    found = [str(number) if names is None else names[number] or str(number) for number in numbers]
    return ", ".join(found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
