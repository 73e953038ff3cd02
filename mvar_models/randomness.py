"""Every random choice of training is a pure function of (seed, purpose, step), drawn for the whole global batch.

So a resumed run draws what the uninterrupted one would have, without saving any generator's state, and a process that holds a slice of the
batch takes its slice of the draw: the number of processes changes nothing.
"""

from __future__ import annotations

import enum

import numpy as np


class Purpose(enum.IntEnum):
    ORDER = 0
    COPY = 1
    LABEL_DROP = 2
    DROP_PATH = 3
    AUGMENT = 4
    RESTART = 5


def generator(seed: int, purpose: Purpose, step: int) -> np.random.Generator:
    """An independent stream for each triple (counter-based: Philox keyed by all three)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, int(purpose), step])))


def batch_members(seed: int, step: int, batch_size: int, size: int) -> np.ndarray:
    """Examples of one global batch: epochs are permutations of all examples, laid end to end, so a batch may span two."""
    first = step * batch_size
    members = np.empty(batch_size, dtype=np.int64)
    filled = 0
    while filled < batch_size:
        epoch, offset = divmod(first + filled, size)
        order = generator(seed, Purpose.ORDER, epoch).permutation(size)
        take = min(batch_size - filled, size - offset)
        members[filled : filled + take] = order[offset : offset + take]
        filled += take
    return members
