"""Training the multi-scale VQVAE on pictures: reconstruction, codebook and commitment losses, optionally perceptual and adversarial ones, and
dead codes put to work.

Why codes are restarted: with gradients alone, a small codebook on a small dataset keeps only the codes that were near data at the start.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from mvar_models.config import SIDES_256, SIDES_512, SIDES_1024, VQVAEConfig
from mvar_models.data.augment import affine, random_moves
from mvar_models.data.source import ImageSource
from mvar_models.devices import fit_batch
from mvar_models.evaluation.reconstruction import psnr, side_by_side
from mvar_models.networks.vqvae import VQVAE
from mvar_models.randomness import Purpose, batch_members, generator
from mvar_models.training.optimizer import learning_rate_factor
from mvar_models.training.settings import VQVAESettings
from mvar_models.training.task import Task
from mvar_models.training.vqvae_losses import Adversary, Perceptual

# Pictures of a validation pass at most, and their pixels: 16 of 256 px, whose reconstruction takes 5 GB with the released decoder.
_VALIDATION_BATCH, _VALIDATION_PIXELS = 64, 16 * 256 * 256
_USAGE_MOMENTUM = 0.99
_RESTART_EVERY = 20
# Restarts stop for the last part of a run, so that the codes that remain can settle.
_RESTART_UNTIL = 0.7
_SHOWN = 8
# Settings that a run shares with the model's configuration.
SHAPE = (
    "vocab_size",
    "z_channels",
    "channels",
    "channel_multipliers",
    "blocks_per_level",
    "sides",
    "num_residual_convolutions",
)


def build_vqvae(settings: VQVAESettings) -> VQVAE:
    """A new VQVAE, or the one that `init` names."""
    if settings.init is not None:
        return VQVAE.from_pretrained(settings.init, device=settings.device)
    torch.manual_seed(settings.seed)
    return VQVAE(new_vqvae_config(settings)).to(settings.device)


def new_vqvae_config(settings: VQVAESettings) -> VQVAEConfig:
    """The model's part of a run's settings."""
    return VQVAEConfig(**{name: getattr(settings, name) for name in SHAPE})


def released_vqvae_shape(resolution: int) -> dict[str, Any]:
    """Settings of a `VQVAESettings` that give the released VQVAE (109 M parameters) with the scales of 256, 512 or 1024 px."""
    sides = {256: SIDES_256, 512: SIDES_512, 1024: SIDES_1024}.get(resolution)
    if sides is None:
        raise ValueError(
            f"resolution must be 256, 512 or 1024, got {resolution}; for others give sides and channel_multipliers"
        )
    shape = dataclasses.asdict(VQVAEConfig(sides=sides))
    return {name: shape[name] for name in SHAPE}


class Autoencode(nn.Module):
    """Images -> reconstructions, codebook loss, commitment loss, latents, indices: what several processes wrap, as its forward is the step's."""

    def __init__(self, model: VQVAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        features = self.model.latents(images)
        with torch.autocast(
            images.device.type, enabled=False
        ):  # which code is nearest is not for half precision to say
            f_hat, codebook, commitment, indices = self.model.quantizer(features.float())
        return self.model.decoder(self.model.post_quant_conv(f_hat)), codebook, commitment, features, indices


class VQVAETask(Task):
    best_figure = "val_psnr"
    higher_is_better = True

    model: VQVAE

    def __init__(
        self, model: VQVAE, source: ImageSource, train: np.ndarray, val: np.ndarray, settings: VQVAESettings
    ) -> None:
        self.model = model
        self.compute: nn.Module = Autoencode(model)
        self.source = source
        self.train = train
        self.val = val
        self.settings = settings
        self.perceptual = Perceptual().to(settings.device) if settings.perceptual else None
        self.adversary: Adversary | None = None
        if settings.adversarial:
            self.adversary = Adversary(
                model.config.resolution, settings.adversarial, settings.lr, settings.device, settings.seed
            )
        self.adversarial_start = (
            settings.steps // 2 if settings.adversarial_start is None else settings.adversarial_start
        )
        self.rank, self.world_size = 0, 1
        self.total: Callable[[Tensor], Tensor] = lambda values: values
        self._parts: list[tuple[int, Tensor, Tensor]] = []  # of a step: first row, latents, indices
        self._reader = ThreadPoolExecutor(1)
        self._coming: dict[tuple[int, int, int], Future[Tensor]] = {}

    @property
    def fingerprint(self) -> str:
        return self.source.fingerprint

    @property
    def num_examples(self) -> int:
        return len(self.train)

    def unused_parameters(self) -> bool:
        """With few scales a residual convolution may serve none."""
        config = self.model.config
        return len(set(config.residual_convolution_of_scale)) < config.num_residual_convolutions

    def share_validation(self, rank: int, world_size: int, total: Callable[[Tensor], Tensor]) -> None:
        self.rank, self.world_size, self.total = rank, world_size, total

    def batch(self, step: int, rows: slice | None = None) -> Tensor:
        """Pictures of a step, mirrored at random where classes allow it, else lightly moved. The next step's are read meanwhile."""
        settings = self.settings
        start, stop = (0, settings.batch_size) if rows is None else (rows.start, rows.stop)
        coming = self._coming.pop((step, start, stop), None)
        images = self._read(step, start, stop) if coming is None else coming.result()
        if step + 1 < settings.steps:
            self._coming = {key: future for key, future in self._coming.items() if key[0] >= step}
            self._coming[step + 1, start, stop] = self._reader.submit(self._read, step + 1, start, stop)
        rng = generator(settings.seed, Purpose.AUGMENT, step)
        if not self.source.flips:
            return affine(images, random_moves(rng, settings.batch_size)[start:stop]).to(settings.device)
        mirrored = torch.from_numpy(rng.random(settings.batch_size)[start:stop] < 0.5)[:, None, None, None]
        return torch.where(mirrored, images.flip(-1), images).to(settings.device)

    def _read(self, step: int, start: int, stop: int) -> Tensor:
        members = batch_members(self.settings.seed, step, self.settings.batch_size, len(self.train))[
            start:stop
        ]
        return self.source.images(self.train[members])

    def loss(self, step: int, rows: slice | None = None) -> tuple[Tensor, dict[str, float]]:
        images = self.batch(step, rows)
        reconstructed, codebook, commitment, features, indices = self.compute(images)
        self._parts.append((0 if rows is None else rows.start, features.detach(), indices))
        reconstruction = F.mse_loss(reconstructed.float(), images)
        figures = {"reconstruction": reconstruction.item(), "codebook": codebook.item()}
        visible = reconstruction
        if self.perceptual is not None:
            perceptual = self.perceptual(reconstructed, images)
            visible = visible + self.settings.perceptual * perceptual
            figures["perceptual"] = perceptual.item()
        loss = visible + codebook + self.settings.commitment * commitment
        if self.adversary is not None and step >= self.adversarial_start:
            adversarial, more = self.adversary.loss(
                reconstructed, visible, self.model.decoder.conv_out.weight
            )
            loss = loss + adversarial
            share = len(images) * self.world_size / self.settings.batch_size
            figures |= more | self.adversary.learn(images, reconstructed, share)
        return loss, figures

    def compiled_modules(self) -> Sequence[nn.Module]:
        return [self.model.encoder, self.model.decoder]

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Let the discriminator step; count the codes that were drawn; now and then put those that nobody draws on residuals of the batch."""
        if self.adversary is not None and step >= self.adversarial_start:
            self.adversary.step(learning_rate_factor(step, self.settings.steps))
        quantizer, parts = self.model.quantizer, self._parts
        self._parts = []
        drawn = self._total(torch.stack([self._draws(indices) for _, _, indices in parts]).sum(0))
        quantizer.code_usage.mul_(_USAGE_MOMENTUM).add_(
            drawn / drawn.sum(1, keepdim=True), alpha=1 - _USAGE_MOMENTUM
        )
        early = step < _RESTART_UNTIL * self.settings.steps
        if early and step and step % _RESTART_EVERY == 0:
            self._restart_dead_codes([(start, features) for start, features, _ in parts], step)

    def _total(self, values: Tensor) -> Tensor:
        """Sums over processes, on the device of `values`."""
        return values if self.world_size == 1 else self.total(values.cpu()).to(values.device)

    def _draws(self, indices: Tensor) -> Tensor:
        """(S, V): how often each code was drawn at each scale, of indices (n, L)."""
        config, offset, rows = self.model.config, 0, []
        for side in config.sides:
            drawn = indices[:, offset : offset + side * side].flatten()
            rows.append(torch.bincount(drawn, minlength=config.vocab_size).float())
            offset += side * side
        return torch.stack(rows)

    def _restart_dead_codes(self, parts: list[tuple[int, Tensor]], step: int) -> None:
        quantizer, shape, settings = self.model.quantizer, self.model.config, self.settings
        # Every place of every scale counts alike, as in the loss.
        places = torch.tensor(
            [side * side for side in shape.sides], dtype=torch.float32, device=quantizer.code_usage.device
        )
        seen = 1 - _USAGE_MOMENTUM ** (step + 1)
        share = (quantizer.code_usage * places[:, None]).sum(0) / (places.sum() * seen)
        dead = (share < settings.restart_below / shape.vocab_size).nonzero().flatten()
        if not len(dead):
            return
        candidates = settings.batch_size * shape.length
        chosen = generator(settings.seed, Purpose.RESTART, step).choice(
            candidates, len(dead), replace=len(dead) > candidates
        )
        quantizer.codebook.weight[dead] = self._residuals_at(parts, chosen).to(
            quantizer.codebook.weight.dtype
        )
        # As if drawn at the uniform share, or they would be restarted again before anyone could draw them.
        quantizer.code_usage[:, dead] = seen / shape.vocab_size

    def _residuals_at(self, parts: list[tuple[int, Tensor]], chosen: np.ndarray) -> Tensor:
        """Residuals (n, z) at places of the global batch, numbered picture by picture; each process fills in what it has."""
        length = self.model.config.length
        found = torch.zeros(len(chosen), self.model.config.z_channels, device=parts[0][1].device)
        for start, features in parts:
            mine = np.flatnonzero((chosen >= start * length) & (chosen < (start + len(features)) * length))
            if len(mine):
                places = torch.from_numpy(chosen[mine] - start * length).to(found.device)
                found[torch.from_numpy(mine).to(found.device)] = self._residuals(features).flatten(0, 1)[
                    places
                ]
        return self._total(found)

    def _residuals(self, features: Tensor) -> Tensor:
        """Vectors (n, L, z) that the quantizer would look up codes for."""
        quantizer, rest, vectors = self.model.quantizer, features.float(), []
        for scale in range(len(self.model.config.sides)):
            pooled = quantizer.pool(rest, scale)
            vectors.append(pooled.flatten(2).transpose(1, 2))
            rest = rest - quantizer.contribution(quantizer.nearest_codes(pooled), scale)
        return torch.cat(vectors, dim=1)

    @torch.no_grad()
    def validate(self) -> dict[str, Any]:
        """On the held-out pictures: PSNR in dB (mean over pictures); and for the codes of each scale the share in use, and the perplexity, the
        number of equally frequent codes that would be as varied. A scale cannot use more codes than it has places in all held-out pictures.
        """
        config = self.model.config
        ratios, drawn = torch.zeros(2, dtype=torch.float64), torch.zeros(len(config.sides), config.vocab_size)
        mine = self.val[self.rank :: self.world_size]
        each = fit_batch(_VALIDATION_PIXELS, config.resolution**2, most=_VALIDATION_BATCH)
        for start in range(0, len(mine), each):
            images = self.source.images(mine[start : start + each]).to(self.settings.device)
            indices = self.model.encode(images)
            drawn += self._draws(indices).cpu()
            found = psnr(self.model.decode(indices), images)
            ratios += torch.tensor([found.double().sum().item(), len(found)], dtype=torch.float64)
        ratios, drawn = self.total(ratios), self.total(drawn)
        unreadable = torch.zeros(len(self.source))
        unreadable[sorted(self.source.unreadable)] = 1
        share = drawn / drawn.sum(1, keepdim=True)
        return {
            "val_psnr": (ratios[0] / ratios[1]).item(),
            "codes_used": (drawn.sum(0) > 0).float().mean().item(),
            "codes_used_per_scale": (drawn > 0).float().mean(1).tolist(),
            "code_perplexity_per_scale": torch.special.entr(share).sum(1).exp().tolist(),
            "unreadable_pictures": int((self.total(unreadable) > 0).sum()),
        }

    @torch.no_grad()
    def sample(self) -> Image.Image:
        """Held-out pictures above their reconstructions."""
        images = self.source.images(
            self.val[np.unique(np.linspace(0, len(self.val) - 1, _SHOWN).astype(np.int64))]
        )
        moved = images.to(self.settings.device)
        return side_by_side(images, self.model.decode(self.model.encode(moved)))

    def state_dict(self) -> dict[str, Any]:
        return {} if self.adversary is None else {"adversary": self.adversary.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.adversary is not None:
            self.adversary.load_state_dict(state["adversary"])

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
