"""Names of the 1,000 ImageNet classes in the order of their labels.

They are WordNet lemmas; synonyms are separated by ", ".
"""

from __future__ import annotations

from functools import lru_cache
from importlib import resources

NUM_CLASSES = 1000


@lru_cache(maxsize=1)
def class_names() -> tuple[str, ...]:
    """Return one name per label: "golden retriever" is 207."""
    text = (resources.files("mvar_models.checkpoints") / "imagenet_names.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())
