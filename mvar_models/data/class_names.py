"""Number classes by their names, and match the classes of two sets."""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Sequence

import numpy as np

from mvar_models.checkpoints.zoo import are_wordnet_ids
from mvar_models.sampling.labels import composed, label_number

logger = logging.getLogger(__name__)

_LISTED = 3


def printable(name: str) -> str:
    """Return the name of a file as text; bytes that are no UTF-8 become escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def class_order(names: Sequence[str], place: str) -> list[int]:
    """Return the positions of class names in the order of their numbers.

    Names that are all whole numbers are ordered as numbers, so that class 2 is "2" and not "10".

    Args:
        names: composed names.
        place: what holds the classes, for messages.

    Raises:
        ValueError: two classes have the same name.
    """
    first = {name: position for position, name in reversed(list(enumerate(names)))}
    if len(first) < len(names):
        twin = next(name for position, name in enumerate(names) if first[name] != position)
        raise ValueError(
            f"{place} has two classes {twin!r}, whose names differ only in how accents are stored; "
            "move their images into one"
        )
    if not all(name.isascii() and name.isdigit() for name in names):
        return sorted(range(len(names)), key=names.__getitem__)
    chosen = sorted(range(len(names)), key=lambda position: (int(names[position]), names[position]))
    if [int(names[position]) for position in chosen] != list(range(len(names))):
        last = len(names) - 1
        warn_once(
            f"the classes of {place} are named by numbers, but not by 0 to {last}: number 0 is the class "
            f"{names[chosen[0]]!r}, number {last} is {names[chosen[-1]]!r}; a label in quotes is a name"
        )
    return chosen


@functools.cache
def warn_once(message: str) -> None:
    """Log a warning the first time; a run opens its data several times."""
    logger.warning("%s", message)


def same_classes(names: Sequence[str], others: Sequence[str]) -> bool:
    """Return whether each number is the same class in both sets.

    WordNet ids in `names`, as ImageNet's folders have, stand for whatever names `others` has instead.
    """
    first, second = tuple(map(composed, names)), tuple(map(composed, others))
    if len(first) != len(second):
        return False
    return first == second or (are_wordnet_ids(first) and not are_wordnet_ids(second))


def renumbered(labels: np.ndarray, names: Sequence[str] | None, others: Sequence[str] | None) -> np.ndarray:
    """Return labels as the numbers that another set has for the same classes, -1 where it has none.

    A name is looked up as `label_number` does, so synonyms and numbers count as names. Where one of the sets
    has no names, or those of ImageNet's folders, numbers are compared with numbers.

    Args:
        labels: (n,) classes of images.
        names: Their names by number, "" where one is not known; None where none is.
        others: The other set's names.
    """
    pairs = [] if names is None or others is None else [(names, others), (others, names)]
    if any(same_classes(*pair) for pair in pairs):
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


def counted(names: Sequence[str]) -> str:
    """Return "1 class: photos" or "3 classes: ant, bee, cat"."""
    return f"{len(names):,} class{'' if len(names) == 1 else 'es'}: {listed(range(len(names)), names)}"


def listed(numbers: Sequence[int] | np.ndarray, names: Sequence[str] | None) -> str:
    """Return the names of some classes, or their numbers, the first three of many."""
    found = [str(number) if names is None else names[number] or str(number) for number in numbers]
    return ", ".join(found[:_LISTED]) + (", ..." if len(found) > _LISTED else "")
