"""Which number a class has: decided by the names alone, the same on every machine."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence

logger = logging.getLogger(__name__)


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
