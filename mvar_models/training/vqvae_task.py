"""Training the multi-scale VQVAE on images: reconstruction, codebook and commitment losses, optionally
perceptual and adversarial ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from mvar_models.data.source import ImageSource, Prefetcher
from mvar_models.data.transforms import affine, random_affine
from mvar_models.devices import fit_batch
from mvar_models.distributed import Processes
from mvar_models.evaluation.image_sets import ImageSet, SourceImages, evenly_spaced
from mvar_models.evaluation.reconstruction import (
    code_counts,
    codes_used,
    perplexity,
    psnr,
    reconstructed_images,
    side_by_side,
)
from mvar_models.files import digest
from mvar_models.networks.vqvae import VQVAE
from mvar_models.randomness import Purpose, batch_members, generator
from mvar_models.sampling.progress import counting
from mvar_models.training.optimizer import learning_rate_factor
from mvar_models.training.settings import VQVAESettings
from mvar_models.training.task import Task
from mvar_models.training.vqvae_losses import PERCEPTUAL, Adversary, DeadCodes

# A validation batch has at most this many images, and at most the pixels of 16 images of 256 px, whose
# reconstruction takes 5 GB with the released decoder.
_VALIDATION_BATCH, _VALIDATION_PIXELS = 64, 16 * 256 * 256
_SHOWN = 8


class Autoencode(nn.Module):
    """A training step's forward as a module, which DDP and FSDP can wrap."""

    def __init__(self, model: VQVAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Reconstruct a batch.

        Args:
            images: (n, 3, R, R) in [-1, 1].

        Returns:
            reconstructions (n, 3, R, R), codebook loss, commitment loss, latents (n, z, h, w), indices (n,
            L).
        """
        features = self.model.latents(images)
        # Half precision would decide which code is nearest by rounding.
        with torch.autocast(images.device.type, enabled=False):
            f_hat, codebook, commitment, indices = self.model.quantizer(features.float())
        reconstructed = self.model.decoder(self.model.post_quant_conv(f_hat))
        return reconstructed, codebook, commitment, features, indices


class VQVAETask(Task):
    """A VQVAE with its images, of which `train` and `val` are the indices to train and to validate on."""

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
        self.dead_codes = DeadCodes(model, settings)
        self.perceptual: nn.Module | None = None
        if settings.perceptual:
            self.perceptual = PERCEPTUAL[settings.perceptual_network]().to(settings.device)
        self.adversary: Adversary | None = None
        if settings.adversarial:
            self.adversary = Adversary(
                model.config.resolution, settings.adversarial, settings.lr, settings.device, settings.seed
            )
        start = settings.adversarial_start
        self.adversarial_start = settings.steps // 2 if start is None else start
        # Of the micro-batches of a step, by their first rows, from `begin_step` to `loss`.
        self._images: dict[int, Tensor] = {}
        # Keys are (step, first row, end of rows).
        self._reader: Prefetcher[tuple[int, ...], Tensor] = Prefetcher(self._read)

    @property
    def fingerprint(self) -> str:
        return self.source.fingerprint

    @property
    def stamps(self) -> str:
        return digest(self.source.stamps.tobytes())

    @property
    def num_examples(self) -> int:
        return len(self.train)

    def unused_parameters(self) -> bool:
        """Whether a residual convolution serves no scale, as happens with few scales."""
        config = self.model.config
        return len(set(config.residual_convolution_of_scale)) < config.num_residual_convolutions

    def join(self, processes: Processes) -> None:
        super().join(processes)
        self.dead_codes.processes = processes
        if self.adversary is not None:
            self.adversary.processes = processes

    def batch(self, step: int, rows: slice | None = None) -> Tensor:
        """Return images (n, 3, R, R) of a step, mirrored at random where classes allow it, otherwise lightly
        moved.

        The next step's images are read in the background.
        """
        settings = self.settings
        start, stop = (0, settings.batch_size) if rows is None else (rows.start, rows.stop)
        following = (step + 1, start, stop) if step + 1 < settings.steps else None
        images = self._reader.get((step, start, stop), following)
        rng = generator(settings.seed, Purpose.AUGMENT, step)
        if not self.source.mirror_safe:
            return affine(images, random_affine(rng, settings.batch_size)[start:stop]).to(settings.device)
        mirrored = torch.from_numpy(rng.random(settings.batch_size)[start:stop] < 0.5)[:, None, None, None]
        return torch.where(mirrored, images.flip(-1), images).to(settings.device)

    def _read(self, key: tuple[int, ...]) -> Tensor:
        step, start, stop = key
        members = batch_members(self.settings.seed, step, self.settings.batch_size, len(self.train))
        return self.source.images(self.train[members[start:stop]])

    def begin_step(self, step: int, parts: Sequence[slice]) -> None:
        """Balance the adversarial loss over several micro-batches, by a forward of each before their own.

        The balance is a ratio of gradients of the whole batch. No activation is kept but the last.
        """
        self._images = {}
        if self.adversary is None or step < self.adversarial_start:
            return
        self.adversary.factor = None
        if len(parts) == 1:
            return
        weight, forward, pulls = self.model.decoder.conv_out.weight, Autoencode(self.model), []
        frozen = [each for each in self.model.parameters() if each.requires_grad and each is not weight]
        try:
            for parameter in frozen:
                parameter.requires_grad_(False)
            for rows in parts:
                images = self._images[rows.start] = self.batch(step, rows)
                reconstructed = forward(images)[0]
                visible, _ = self._visible(images, reconstructed)
                pulls.append(self.adversary.pulls(reconstructed, visible, weight) * self._share(images))
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)
        self.adversary.factor = self.adversary.balance(torch.stack(pulls).sum(0))

    def loss(self, step: int, rows: slice | None = None) -> tuple[Tensor, dict[str, float]]:
        start = 0 if rows is None else rows.start
        images = self._images.pop(start) if start in self._images else self.batch(step, rows)
        reconstructed, codebook, commitment, features, indices = self.compute(images)
        self.dead_codes.observe(start, features, indices)
        visible, figures = self._visible(images, reconstructed)
        figures["codebook"] = codebook.item()
        loss = visible + codebook + self.settings.commitment * commitment
        if self.adversary is not None and step >= self.adversarial_start:
            weight, share = self.model.decoder.conv_out.weight, self._share(images)
            adversarial, more = self.adversary.loss(reconstructed, visible, weight, share)
            loss = loss + adversarial
            figures |= more | self.adversary.learn(images, reconstructed, share)
        return loss, figures

    def _visible(self, images: Tensor, reconstructed: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Return the losses that the decoder alone decides, and figures to log."""
        loss = F.mse_loss(reconstructed.float(), images)
        figures = {"reconstruction": loss.item()}
        if self.perceptual is not None:
            perceptual = self.perceptual(reconstructed, images)
            loss = loss + self.settings.perceptual * perceptual
            figures["perceptual"] = perceptual.item()
        return loss, figures

    def _share(self, images: Tensor) -> float:
        return len(images) * self.processes.world_size / self.settings.batch_size

    def compiled_modules(self) -> Sequence[nn.Module]:
        return [self.model.encoder, self.model.decoder]

    def after_step(self, step: int) -> None:
        """Let the discriminator step, and restart dead codes."""
        if self.adversary is not None and step >= self.adversarial_start:
            self.adversary.step(learning_rate_factor(step, self.settings.steps))
        self.dead_codes.update(step)

    @torch.no_grad()
    def validate(self) -> dict[str, Any]:
        """Return the mean PSNR of held-out images in dB, and how the codebook is used at each scale.

        A scale cannot use more codes than it has places in all held-out images.
        """
        config, processes = self.model.config, self.processes
        ratios = torch.zeros(2, dtype=torch.float64, device="cpu")  # sum and count
        counts = torch.zeros(len(config.sides), config.vocab_size, dtype=torch.float32, device="cpu")
        mine = self.val[processes.rank :: processes.world_size]
        each = fit_batch(_VALIDATION_PIXELS, config.resolution**2, most=_VALIDATION_BATCH)
        with counting("validation", len(mine)) as meter:
            for start in range(0, len(mine), each):
                images = self.source.images(mine[start : start + each]).to(self.settings.device)
                indices = self.model.encode(images)
                counts += code_counts(indices, config.sides, config.vocab_size).cpu()
                each_psnr = psnr(self.model.decode(indices), images)
                summed = [each_psnr.double().sum().item(), len(each_psnr)]
                ratios += torch.tensor(summed, dtype=torch.float64, device="cpu")
                meter.advance(len(images))
        unreadable = torch.zeros(len(self.source), dtype=torch.float32, device="cpu")
        unreadable[sorted(self.source.unreadable)] = 1
        ratios, counts, unreadable = (processes.total(values) for values in (ratios, counts, unreadable))
        return {
            "val_psnr": (ratios[0] / ratios[1]).item(),
            "codes_used": codes_used(counts.sum(0)).item(),
            "codes_used_per_scale": codes_used(counts).tolist(),
            "code_perplexity_per_scale": perplexity(counts).tolist(),
            "unreadable_pictures": int((unreadable > 0).sum()),
        }

    @torch.no_grad()
    def sample(self, model: nn.Module) -> Image.Image:
        """Return held-out images above their reconstructions."""
        assert isinstance(model, VQVAE)
        images = self.source.images(self.val[evenly_spaced(len(self.val), _SHOWN)])
        return side_by_side(images, model.decode(model.encode(images.to(self.settings.device))))

    def compared(self, model: nn.Module, count: int) -> tuple[ImageSet, ImageSet]:
        """Return reconstructions of held-out images, and these images."""
        assert isinstance(model, VQVAE)
        members = self.val[evenly_spaced(len(self.val), count)]
        real = SourceImages(self.source, members, "held-out", model.config.resolution)
        return reconstructed_images(real, model, "reconstructed"), real

    def state_dict(self) -> dict[str, Any]:
        return {} if self.adversary is None else {"adversary": self.adversary.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.adversary is not None:
            self.adversary.load_state_dict(state["adversary"])

    def save(self, folder: Path, model: nn.Module) -> None:
        assert isinstance(model, VQVAE)
        model.save_pretrained(folder)
