"""The uniform numbers that codes are drawn with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mvar_kernels import Pyramid


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
