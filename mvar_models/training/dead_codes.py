"""Counts which codes of a VQVAE are drawn during training, and restarts those that nothing draws.

With gradients alone, a small codebook on a small dataset keeps only codes that were near data at the start.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mvar_models.distributed import Processes
from mvar_models.evaluation.reconstruction import code_counts
from mvar_models.networks.vqvae import VQVAE
from mvar_models.randomness import Purpose, generator
from mvar_models.training.settings import VQVAESettings

_USAGE_MOMENTUM = 0.99
_RESTART_EVERY = 20
# Restarts stop before the last part of a run, so that the remaining codes can settle.
_RESTART_UNTIL = 0.7


class DeadCodes:
    """Moves codes with a small share of all draws onto residuals of the current batch.

    The counts are kept in the model (`quantizer.code_usage`), so that a checkpoint holds them.

    Attributes:
        processes: The processes that share the global batch.
    """

    def __init__(self, model: VQVAE, settings: VQVAESettings) -> None:
        self.model = model
        self.settings = settings
        self.processes = Processes()
        self._parts: list[tuple[int, Tensor, Tensor]] = []

    def observe(self, start: int, features: Tensor, indices: Tensor) -> None:
        """Note one part of a step's batch.

        Args:
            start: First row of the part in the global batch.
            features: (n, z, h, w) latents before quantization.
            indices: (n, L) the codes drawn for them.
        """
        self._parts.append((start, features.detach(), indices))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Count the draws observed since the last update, and restart dead codes where `step` is due."""
        usage = self.model.quantizer.code_usage
        drawn = self._total(self.draws())
        usage.mul_(_USAGE_MOMENTUM).add_(drawn / drawn.sum(1, keepdim=True), alpha=1 - _USAGE_MOMENTUM)
        if 0 < step < _RESTART_UNTIL * self.settings.steps and step % _RESTART_EVERY == 0:
            self._restart(step)
        self._parts = []

    def draws(self) -> Tensor:
        """Return (S, V) counts of the observed codes at each scale, of this process's parts."""
        config = self.model.config
        indices = torch.cat([part[2] for part in self._parts])
        return code_counts(indices, config.sides, config.vocab_size)

    def _restart(self, step: int) -> None:
        quantizer, config, settings = self.model.quantizer, self.model.config, self.settings
        usage = quantizer.code_usage
        # Every place of every scale counts alike, as it does in the loss.
        places = torch.tensor(
            [side * side for side in config.sides], dtype=torch.float32, device=usage.device
        )
        seen = 1 - _USAGE_MOMENTUM ** (step + 1)  # what the moving average of a constant 1 has reached
        share = (usage * places[:, None]).sum(0) / (places.sum() * seen)
        dead = (share < settings.restart_below / config.vocab_size).nonzero().flatten()
        if not len(dead):
            return
        candidates = settings.batch_size * config.length
        chosen = generator(settings.seed, Purpose.RESTART, step).choice(
            candidates, len(dead), replace=len(dead) > candidates
        )
        codebook = quantizer.codebook.weight
        codebook[dead] = self._total(self.residuals_at(chosen)).to(codebook.dtype)
        # As if drawn at the uniform share; otherwise they would be restarted before anything could draw them.
        usage[:, dead] = seen / config.vocab_size

    def residuals_at(self, chosen: np.ndarray) -> Tensor:
        """Return (n, z) residuals at places of the global batch, zero where another process has the image.

        Args:
            chosen: (n,) places, numbered image by image and then token by token.
        """
        length = self.model.config.length
        found = torch.zeros(
            len(chosen), self.model.config.z_channels, dtype=torch.float32, device=self._parts[0][1].device
        )
        for start, features, _ in self._parts:
            rows = np.flatnonzero((chosen >= start * length) & (chosen < (start + len(features)) * length))
            if len(rows):
                places = torch.from_numpy(chosen[rows] - start * length).to(found.device)
                residuals = self._residuals(features).flatten(0, 1)
                found[torch.from_numpy(rows).to(found.device)] = residuals[places]
        return found

    def _residuals(self, features: Tensor) -> Tensor:
        """Return (n, L, z), the vectors for which the quantizer looks up codes."""
        quantizer, rest, vectors = self.model.quantizer, features.float(), []
        for scale in range(len(self.model.config.sides)):
            pooled = quantizer.pool(rest, scale)
            vectors.append(pooled.flatten(2).transpose(1, 2))
            rest = rest - quantizer.contribution(quantizer.nearest_codes(pooled), scale)
        return torch.cat(vectors, dim=1)

    def _total(self, values: Tensor) -> Tensor:
        """Sum over processes, returned on the device of `values`."""
        return self.processes.total(values.cpu()).to(values.device) if not self.processes.alone else values
