"""Training the multi-scale VQVAE: reconstruction, codebook and commitment losses, and dead codes put to work.

Why codes are restarted: with gradients alone, a small codebook on a small dataset keeps only the codes that were near data at the start.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mvar_models.config import VQVAEConfig
from mvar_models.training.augment import affine
from mvar_models.training.data import ImageSource
from mvar_models.training.randomness import Purpose, batch_members, generator
from mvar_models.training.recipe import VQVAERun
from mvar_models.training.task import Task
from mvar_models.vqvae import VQVAE

_VALIDATION_BATCH = 64
_USAGE_MOMENTUM = 0.99
_RESTART_EVERY = 20
# Restarts stop for the last part of a run, so that the codes that remain can settle.
_RESTART_UNTIL = 0.7


def build_vqvae(config: VQVAERun) -> VQVAE:
    torch.manual_seed(config.seed)
    return VQVAE(
        VQVAEConfig(
            vocab_size=config.vocab_size,
            z_channels=config.z_channels,
            channels=config.channels,
            channel_multipliers=config.channel_multipliers,
            blocks_per_level=config.blocks_per_level,
            sides=config.sides,
            num_residual_convolutions=config.num_residual_convolutions,
        )
    ).to(config.device)


class VQVAETask(Task):
    best_figure = "val_psnr"
    higher_is_better = True

    def __init__(self, model: VQVAE, source: ImageSource, train: np.ndarray, val: np.ndarray, config: VQVAERun) -> None:
        self.model = model
        self.source = source
        self.train = train
        self.val = val
        self.config = config
        self.latest: tuple[Tensor, Tensor] | None = None

    def batch(self, step: int) -> Tensor:
        """Pictures of a step, mirrored at random where classes allow it, else lightly moved."""
        config = self.config
        members = self.train[batch_members(config.seed, step, config.batch_size, len(self.train))]
        images, rng = self.source.images(members), generator(config.seed, Purpose.AUGMENT, step)
        if not self.source.flips:
            return affine(images, rng).to(config.device)
        mirrored = torch.from_numpy(rng.random(len(images)) < 0.5)[:, None, None, None]
        return torch.where(mirrored, images.flip(-1), images).to(config.device)

    def loss(self, step: int, rows: slice | None = None) -> tuple[Tensor, dict[str, float]]:
        images = self.batch(step)
        features = self.model.latents(images)
        f_hat, codebook, commitment, indices = self.model.quantizer(features)
        reconstruction = F.mse_loss(self.model.decoder(self.model.post_quant_conv(f_hat)), images)
        self.latest = features.detach(), indices
        loss = reconstruction + codebook + self.config.commitment * commitment
        return loss, {"reconstruction": reconstruction.item(), "codebook": codebook.item()}

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Count the codes that were drawn; now and then put those that nobody draws on residuals of the batch."""
        assert self.latest is not None
        features, indices = self.latest
        self.latest = None
        usage = self.model.quantizer.code_usage
        usage.mul_(_USAGE_MOMENTUM).add_(self._shares(indices), alpha=1 - _USAGE_MOMENTUM)
        early = step < _RESTART_UNTIL * self.config.steps
        if early and step and step % _RESTART_EVERY == 0:
            self._restart_dead_codes(features, step)

    def _shares(self, indices: Tensor) -> Tensor:
        """(S, V): share of each code among the draws of each scale."""
        vocab, offset, rows = self.config.vocab_size, 0, []
        for side in self.config.sides:
            drawn = indices[:, offset : offset + side * side].flatten()
            rows.append(torch.bincount(drawn, minlength=vocab) / drawn.numel())
            offset += side * side
        return torch.stack(rows)

    def _restart_dead_codes(self, features: Tensor, step: int) -> None:
        quantizer, config = self.model.quantizer, self.config
        # Every place of every scale counts alike, as in the loss.
        places = torch.tensor([side * side for side in config.sides], dtype=torch.float32, device=features.device)
        share = (quantizer.code_usage * places[:, None]).sum(0) / (places.sum() * (1 - _USAGE_MOMENTUM ** (step + 1)))
        dead = (share < config.restart_below / config.vocab_size).nonzero().flatten()
        if not len(dead):
            return
        candidates = self._residuals(features)
        chosen = generator(config.seed, Purpose.RESTART, step).choice(len(candidates), len(dead), replace=len(dead) > len(candidates))
        quantizer.codebook.weight[dead] = candidates[torch.from_numpy(chosen).to(features.device)]
        # As if drawn at the uniform share, or they would be restarted again before anyone could draw them.
        quantizer.code_usage[:, dead] = (1 - _USAGE_MOMENTUM ** (step + 1)) / config.vocab_size

    def _residuals(self, features: Tensor) -> Tensor:
        """Vectors (n, z) that the quantizer would look up codes for, over all scales of a batch."""
        quantizer, rest, vectors = self.model.quantizer, features.float(), []
        for scale in range(len(self.config.sides)):
            pooled = quantizer.pool(rest, scale)
            vectors.append(pooled.permute(0, 2, 3, 1).reshape(-1, pooled.shape[1]))
            rest = rest - quantizer.contribution(quantizer.nearest_codes(pooled), scale)
        return torch.cat(vectors)

    def validate(self) -> dict[str, Any]:
        """PSNR in dB of the held-out pictures (mean over pictures), and the share of codes in use at each scale."""
        ratios, used = [], torch.zeros(len(self.config.sides), self.config.vocab_size)
        for start in range(0, len(self.val), _VALIDATION_BATCH):
            images = self.source.images(self.val[start : start + _VALIDATION_BATCH]).to(self.config.device)
            indices = self.model.encode(images)
            used += self._shares(indices).cpu()
            ratios.append(psnr(self.model.decode(indices), images))
        return {
            "val_psnr": torch.cat(ratios).mean().item(),
            "codes_used": (used.sum(0) > 0).float().mean().item(),
            "codes_used_per_scale": (used > 0).float().mean(1).tolist(),
        }

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)


def psnr(images: Tensor, originals: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture of (n, 3, R, R) in [-1, 1], in dB: (n,)."""
    error = (images - originals).square().mean(dim=(1, 2, 3)).clamp_min(1e-12)
    return 10 * torch.log10(4 / error)
