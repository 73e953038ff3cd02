"""Short hashes that tell one dataset from another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np


def digest(*parts: str | bytes) -> str:
    """Return 16 hex digits of SHA-256 over the parts."""
    total = hashlib.sha256()
    for part in parts:
        # surrogateescape: names of files need not be valid UTF-8.
        value = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        # The length goes first, so that ("ab", "c") and ("a", "bc") differ.
        total.update(len(value).to_bytes(8, "little") + value)
    return total.hexdigest()[:16]


def content_fingerprint(
    class_names: Sequence[str], labels: np.ndarray, names: Iterable[str], sizes: np.ndarray
) -> str:
    """Return the digest of a list of examples, without reading one.

    Args:
        class_names: one name per label.
        labels: (N,) class of each example.
        names: N names, which do not depend on where the data is stored.
        sizes: (N,) bytes of each example.
    """
    parts = "\0".join(class_names), "\0".join(names)
    return digest(*parts, np.asarray(labels, dtype="<i8").tobytes(), np.asarray(sizes, dtype="<i8").tobytes())
