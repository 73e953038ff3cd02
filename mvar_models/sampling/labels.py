"""Class names to numbers, with help for misspelt ones."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Sequence


def label_number(label: int | str, num_classes: int, names: Sequence[str] = ()) -> int:
    """Return the number of a class.

    Args:
        label: The number, the name, one of the synonyms in a name ("tench, Tinca tinca"), in any case, or the
            beginning of words of one name ("golden ret").
        num_classes: Number of classes.
        names: One name per class, or none.

    Raises:
        TypeError: `label` is neither a number nor a name.
        ValueError: no class has this label, or several have.
    """
    label = label.tolist() if hasattr(label, "tolist") else label  # NumPy's numbers, and tensors
    if isinstance(label, str):
        # Names made on macOS may keep accents apart from their letters.
        label, names = composed(label), [composed(name) for name in names]
        matches = _matches(label, names)
        if len(matches) > 1:
            several = ", ".join(f"{match} ({names[match]})" for match in matches[:5])
            more = ", ..." if len(matches) > 5 else ""
            raise ValueError(f"label {label!r} fits classes {several}{more}; give the number, or more of it")
        if matches:
            return matches[0]
        if not label.isdecimal():
            raise ValueError(f"unknown label {label!r}: {_hint(label, names)}")
        label = int(label)
    if isinstance(label, bool) or not isinstance(label, int):
        raise TypeError(f"a label must be an int or a class name, got {label!r}")
    if not 0 <= label < num_classes:
        raise ValueError(f"unknown label {label}: the model has classes 0 to {num_classes - 1}")
    return label


def split_labels(text: str, names: Sequence[str] = ()) -> list[str]:
    """Split a text at its commas into labels; a class name that contains commas stays whole.

    "tench, Tinca tinca,7" are two labels where a class is called "tench, Tinca tinca".
    """
    parts = [part.strip() for part in composed(text).split(",")]
    whole = {composed(name).casefold() for name in names}
    labels = []
    while parts:
        lengths = (n for n in range(len(parts), 1, -1) if ", ".join(parts[:n]).casefold() in whole)
        count = next(lengths, 1)
        labels.append(", ".join(parts[:count]))
        del parts[:count]
    return labels


def _matches(label: str, names: Sequence[str]) -> list[int]:
    """Return the classes of that name: the whole name, else a synonym, else in any case, else a part."""
    folded = label.casefold()
    for matching in (
        lambda name: label == name,
        lambda name: label in name.split(", "),
        lambda name: folded in (name.casefold(), *name.casefold().split(", ")),
    ):
        found = [number for number, name in enumerate(names) if matching(name)]
        if found:
            return found
    if not folded or folded.isdecimal():
        return []
    begins = re.compile(rf"(?<!\w){re.escape(folded)}")
    return [number for number, name in enumerate(names) if begins.search(name.casefold())]


def composed(text: str) -> str:
    """Return a text in the form that keyboards write (NFC)."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _hint(label: str, names: Sequence[str]) -> str:
    """Return the names that the user may have meant, else the first ones."""
    synonyms = {synonym.casefold(): synonym for name in names for synonym in name.split(", ")}
    close = difflib.get_close_matches(label.casefold(), synonyms, n=3, cutoff=0.8)
    if close:
        return f"did you mean {' or '.join(repr(synonyms[each]) for each in close)}?"
    if not names:
        return "it has no class names"
    return f"its classes are {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"
