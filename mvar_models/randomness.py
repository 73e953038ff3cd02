"""Random numbers of training: pure functions of (seed, purpose, step), sampled for the global batch.

So a resumed run samples as the uninterrupted run would have, without any saved generator state. A process
takes its slice of the numbers as it takes its slice of the batch, so the number of processes changes nothing.
"""

from __future__ import annotations

import enum

import numpy as np


class Purpose(enum.IntEnum):
    """What a random number is for. The values are part of every seed: never renumber them."""

    ORDER = 0
    VARIANT = 1
    LABEL_DROP = 2
    DROP_PATH = 3
    AUGMENT = 4
    RESTART = 5
    CORRUPTION = 6
    PARTNER = 7


def generator(seed: int, purpose: Purpose, step: int) -> np.random.Generator:
    """Return an independent stream for each triple."""
    # Philox is counter-based, so streams cost nothing to create and do not overlap.
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, int(purpose), step])))


def batch_members(seed: int, step: int, batch_size: int, num_examples: int) -> np.ndarray:
    """Return the (batch_size,) examples of one global batch.

    Epochs are permutations of all examples, laid end to end, so a batch may span two of them.
    """
    first = step * batch_size
    members = np.empty(batch_size, dtype=np.int64)
    filled = 0
    while filled < batch_size:
        epoch, offset = divmod(first + filled, num_examples)
        order = generator(seed, Purpose.ORDER, epoch).permutation(num_examples)
        take = min(batch_size - filled, num_examples - offset)
        members[filled : filled + take] = order[offset : offset + take]
        filled += take
    return members
