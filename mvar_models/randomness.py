"""Random numbers of training and sampling.

Those of training are pure functions of (seed, purpose, step), sampled for the global batch, so a resumed run
samples as the uninterrupted run would have, without any saved generator state. A process takes its slice of
the numbers as it takes its slice of the batch, so the number of processes changes nothing. Those of sampling,
one per token, depend on the image's seed alone.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mvar_kernels import Pyramid


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


class UniformNumbers:
    """One number in [0, 1) per token, read from the generators in the order of the tokens.

    They are read at once and copied to the device once, so the loop over scales waits for no copy. If a
    sampler reads the generators too, they are read scale by scale, as its own numbers lie in between. Numbers
    of scales that are not drawn are read all the same: a token's number depends on its seed alone.

    Args:
        generators: One CPU generator per image.
        pyramid: Says which tokens a scale has.
        scales: The scales that are drawn.
        by_scale: Read the numbers of a scale when they are asked for.
        device: Where the numbers are needed.

    Attributes:
        generators: The generators, one per image.
    """

    def __init__(
        self,
        generators: Sequence[torch.Generator],
        pyramid: Pyramid,
        scales: range,
        by_scale: bool,
        device: torch.device,
    ) -> None:
        self.generators, self._pyramid, self._device = generators, pyramid, device
        self._all: Tensor | None = None
        if not by_scale:
            self._all = uniform_numbers(generators, pyramid.length).to(device)
        elif scales.start:
            uniform_numbers(generators, pyramid.offsets[scales.start])

    @classmethod
    def of_tensor(cls, numbers: Tensor, pyramid: Pyramid) -> UniformNumbers:
        """Return numbers (B, L) that were read before; a sampler then finds no generators."""
        made = cls((), pyramid, range(pyramid.num_scales), True, numbers.device)
        made._all = numbers
        return made

    def of_scale(self, scale: int) -> Tensor:
        """Return the numbers of a scale, (B, n) float32; scales are asked for in order."""
        tokens = self._pyramid.scale_slice(scale)
        if self._all is not None:
            return self._all[:, tokens]
        return uniform_numbers(self.generators, tokens.stop - tokens.start).to(self._device)


def uniform_numbers(generators: Sequence[torch.Generator], tokens: int) -> Tensor:
    """Read one float32 number in [0, 1) per token of each image: (B, n)."""
    numbers = [torch.rand(tokens, generator=each, dtype=torch.float64, device="cpu") for each in generators]
    # Rounding to float32 could give 1, which would be past the end of every distribution.
    return torch.stack(numbers).float().clamp_max(1 - 2**-24)
