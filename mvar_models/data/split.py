"""The split into training and held-out examples: a pure function of the labels, the same in every command."""

from __future__ import annotations

import logging
from functools import cached_property

import numpy as np

logger = logging.getLogger(__name__)

_SEED = 0
_HELD_OUT = 0.25
# Validation on more images than this costs time and tells nothing new.
_MOST_HELD_OUT = 10_000


class Split:
    """Indices of the examples to train on and of those to validate on.

    Attributes:
        train: (n,) int64, ascending.
        reserved: (m,) int64, ascending: the examples kept out of training; empty where none can be spared.
    """

    def __init__(self, train: np.ndarray, reserved: np.ndarray) -> None:
        self.train = train
        self.reserved = reserved

    @classmethod
    def of_flags(cls, reserved: np.ndarray) -> Split:
        """Return the split that (N,) bool flags describe."""
        return cls(np.flatnonzero(~reserved), np.flatnonzero(reserved))

    @cached_property
    def held_out(self) -> np.ndarray:
        """Examples to validate on: the reserved ones, or the training examples if none are reserved."""
        if len(self.reserved):
            return self.reserved
        logger.warning(
            "%d images are too few to hold any out; validation is on the training images", len(self.train)
        )
        return self.train


def draw_split(labels: np.ndarray, num_classes: int) -> Split:
    """Hold out the same share of every class: a quarter, and about 10,000 examples in total at most."""
    share = min(_HELD_OUT, _MOST_HELD_OUT / max(1, len(labels)))
    rng = np.random.default_rng(_SEED)
    train, reserved = [], []
    for label in range(num_classes):
        members = rng.permutation(np.flatnonzero(labels == label))
        cut = round(len(members) * share)
        reserved.append(members[:cut])
        train.append(members[cut:])
    return Split(np.sort(np.concatenate(train)), np.sort(np.concatenate(reserved)))
