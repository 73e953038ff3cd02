"""Names of the 1,000 ImageNet classes in the order of their labels.

They are WordNet lemmas; synonyms are separated by ", ".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources

NUM_CLASSES = 1000
_WORDNET_ID = re.compile(r"n\d{8}")


@lru_cache(maxsize=1)
def class_names() -> tuple[str, ...]:
    """Return one name per label: "golden retriever" is 207."""
    text = (resources.files("mvar_models.checkpoints") / "imagenet_names.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def are_wordnet_ids(names: Sequence[str]) -> bool:
    """Return whether all names are WordNet ids, as ImageNet's folders often are, in its labels' order."""
    return bool(names) and all(_WORDNET_ID.fullmatch(name) for name in names)
