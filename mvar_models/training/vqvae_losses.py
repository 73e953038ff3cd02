"""Losses of the VQVAE beyond reconstruction, and restarts of its dead codes.

An adversarial loss as in VQGAN (arXiv 2012.09841): a patch discriminator, hinge losses, and a weight that
balances gradients. Perceptual losses: distances between the features of images and of their reconstructions.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvar_models.distributed import Processes
from mvar_models.evaluation.features.efficientnet_lite import load_network, normalised
from mvar_models.evaluation.reconstruction import code_counts
from mvar_models.networks.vqvae import VQVAE
from mvar_models.optional import require
from mvar_models.randomness import Purpose, generator
from mvar_models.training.settings import VQVAESettings

_BETAS = (0.5, 0.9)
_LARGEST_WEIGHT = 1e4
# Losses are scaled up before their gradients are taken, which fp16 would round to zero; the ratio is kept.
_LIFT = 1024.0
# Half the side that the network was trained at. At 64 px its last blocks would see 2 x 2 positions, at 224 px
# the loss would cost four times as much.
_LEAST_SIDE = 112
_USAGE_MOMENTUM = 0.99
_RESTART_EVERY = 20
# Restarts stop before the last part of a run, so that the remaining codes can settle.
_RESTART_UNTIL = 0.7


class PatchDiscriminator(nn.Module):
    """Judges every patch of an image as real or not (PatchGAN, arXiv 1611.07004).

    GroupNorm replaces its BatchNorm, so that results do not depend on how a batch is divided.
    """

    def __init__(self, resolution: int, width: int = 64) -> None:
        super().__init__()
        halvings = min(max(int(math.log2(resolution)) - 4, 1), 3)
        widths = [width * min(2**i, 8) for i in range(halvings + 1)]
        layers: list[nn.Module] = [nn.Conv2d(3, width, kernel_size=4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(1, halvings + 1):
            stride = 2 if i < halvings else 1
            layers += [
                nn.Conv2d(widths[i - 1], widths[i], kernel_size=4, stride=stride, padding=1, bias=False)
            ]
            layers += [nn.GroupNorm(min(32, widths[i]), widths[i]), nn.LeakyReLU(0.2)]
        layers.append(nn.Conv2d(widths[-1], 1, kernel_size=4, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (n, 3, R, R) to logits (n, 1, r, r), one per patch."""
        logits: Tensor = self.layers(images)
        return logits


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return the discriminator's loss, which is zero for real logits above 1 and fake logits below -1."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


class Adversary:
    """A discriminator with its optimizer; it judges reconstructions and learns from the images of each step.

    Args:
        resolution: Side of the images.
        weight: Factor of the adversarial loss, on top of the balance of gradients.
        lr: Peak learning rate.
        device: Where the discriminator computes.
        seed: Seed of the discriminator's weights.

    Attributes:
        processes: The processes over which gradients are averaged; by default this one alone.
        factor: The balance of gradients over all micro-batches of a step; None: `loss` gets the only one.
    """

    processes: Processes = Processes()
    factor: Tensor | None = None

    def __init__(
        self, resolution: int, weight: float, lr: float, device: torch.device | str, seed: int
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.discriminator = PatchDiscriminator(resolution).to(device)
        self.weight = weight
        self.lr = lr
        self.optimizer = torch.optim.AdamW(
            self.discriminator.parameters(), lr=lr, betas=_BETAS, weight_decay=0.0
        )

    def loss(
        self, reconstructed: Tensor, others: Tensor, last_weight: Tensor, share: float = 1.0
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the adversarial loss of the decoder, and figures to log.

        Args:
            reconstructed: (n, 3, R, R) reconstructions.
            others: Scalar sum of the decoder's other losses.
            last_weight: The decoder's last weight, at which gradients are balanced.
            share: As for `learn`, where this is all that this process has of the batch.
        """
        factor = self.factor
        if factor is None:
            factor = self.balance(share * self.pulls(reconstructed, others, last_weight))
        adversarial = self._adversarial(reconstructed)
        return self.weight * factor * adversarial, {
            "adversarial": adversarial.item(),
            "adversarial_balance": factor.item(),
        }

    def learn(self, images: Tensor, reconstructed: Tensor, share: float) -> dict[str, float]:
        """Add the discriminator's gradients on a part of the batch, and return figures to log.

        Args:
            images: (n, 3, R, R) real images.
            reconstructed: (n, 3, R, R) their reconstructions.
            share: Size of this part over the batch, times the number of processes.
        """
        real, fake = self._judge(images).float(), self._judge(reconstructed.detach()).float()
        loss = hinge_loss(real, fake)
        (loss * share).backward()
        return {
            "discriminator": loss.item(),
            "judged_right": 0.5 * ((real > 0).float().mean() + (fake < 0).float().mean()).item(),
        }

    def step(self, factor: float) -> None:
        """Apply the gradients that `learn` left, at `factor` times the peak learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * factor
        for parameter in self.discriminator.parameters():
            if parameter.grad is not None:
                parameter.grad = self.processes.mean(parameter.grad)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def pulls(self, reconstructed: Tensor, others: Tensor, last_weight: Tensor) -> Tensor:
        """Return (2, ...) the gradients of the other losses and of the adversarial one at `last_weight`."""
        return torch.stack(
            [
                torch.autograd.grad(loss * _LIFT, last_weight, retain_graph=True)[0].float()
                for loss in (others, self._adversarial(reconstructed))
            ]
        )

    def balance(self, pulls: Tensor) -> Tensor:
        """Return the factor that makes both losses pull equally hard, at most 1e4.

        Args:
            pulls: Sum of `pulls` of the parts of this process, each times its share of the batch.
        """
        of_others, of_adversarial = (pull.norm() for pull in self.processes.mean(pulls))
        return (of_others / (of_adversarial + 1e-4 * _LIFT)).clamp(0, _LARGEST_WEIGHT).detach()

    def _adversarial(self, reconstructed: Tensor) -> Tensor:
        self.discriminator.requires_grad_(False)
        adversarial: Tensor = -self._judge(reconstructed).mean()
        self.discriminator.requires_grad_(True)
        return adversarial

    def _judge(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            logits: Tensor = self.discriminator(images.float())
        return logits

    def state_dict(self) -> dict[str, Any]:
        return {"discriminator": self.discriminator.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])


class LPIPS(nn.Module):
    """LPIPS (arXiv 1801.03924), averaged over images. Its first use downloads the weights of VGG16.

    Raises:
        ImportError: the extra `perceptual` is not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        lpips = require("lpips", "perceptual")
        self.network = lpips.LPIPS(net="vgg", verbose=False).eval().requires_grad_(False)

    def forward(self, images: Tensor, originals: Tensor) -> Tensor:
        """Return a scalar for two batches (n, 3, R, R) in [-1, 1]."""
        with torch.autocast(images.device.type, enabled=False):
            distance: Tensor = self.network(images.float(), originals.float()).mean()
        return distance


class EfficientNetDistance(nn.Module):
    """Distance between features of EfficientNet-Lite0, whose weights come inside a package.

    As in LPIPS, the features of every position are scaled to length 1 and their squared differences averaged
    over positions; the mean over the ends of the seven stages replaces LPIPS's learned weights.

    Raises:
        ImportError: the packages of the extra `evaluate` are not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.network: Any = load_network()[0].eval().requires_grad_(False)
        blocks = list(self.network._blocks)
        # A stage ends where the channels change.
        channels = [block._block_args.output_filters for block in blocks]
        self.ends = [i for i in range(len(blocks)) if i + 1 == len(blocks) or channels[i] != channels[i + 1]]

    def train(self, mode: bool = True) -> EfficientNetDistance:
        """Stay in eval mode: the running statistics of batch norm are part of the distance."""
        return super().train(False)

    def forward(self, images: Tensor, originals: Tensor) -> Tensor:
        """Return a scalar for two batches (n, 3, R, R) in [-1, 1]; gradients reach `images` alone."""
        with torch.autocast(images.device.type, enabled=False):
            with torch.no_grad():
                wanted = self._features(originals.float())
            found = self._features(images.float())
        distances = [(one - other).square().sum(1).mean() for one, other in zip(found, wanted)]
        return torch.stack(distances).mean()

    def _features(self, images: Tensor) -> list[Tensor]:
        values = normalised((images + 1) * 127.5)
        if values.shape[-1] < _LEAST_SIDE:
            values = F.interpolate(values, (_LEAST_SIDE, _LEAST_SIDE), mode="bilinear")
        hidden = self.network._swish(self.network._bn0(self.network._conv_stem(values)))
        features = []
        for i, block in enumerate(self.network._blocks):
            hidden = block(hidden)
            if i in self.ends:
                features.append(F.normalize(hidden, dim=1))
        return features


PERCEPTUAL: dict[str, type[nn.Module]] = {"lpips": LPIPS, "efficientnet-lite0": EfficientNetDistance}


class DeadCodes:
    """Moves codes that are hardly used onto residuals of the current batch.

    With gradients alone, a small codebook on a small dataset keeps only codes that were near data at the
    start. The counts are kept in the model (`quantizer.code_usage`), so that a checkpoint holds them.

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
            indices: (n, L) their codes.
        """
        self._parts.append((start, features.detach(), indices))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Count the codes observed since the last update, and restart dead codes where `step` is due."""
        usage = self.model.quantizer.code_usage
        counts = self._total(self.counts())
        usage.mul_(_USAGE_MOMENTUM).add_(counts / counts.sum(1, keepdim=True), alpha=1 - _USAGE_MOMENTUM)
        if 0 < step < _RESTART_UNTIL * self.settings.steps and step % _RESTART_EVERY == 0:
            self._restart(step)
        self._parts = []

    def counts(self) -> Tensor:
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
        # As if used at the uniform share; otherwise they would be restarted before anything could use them.
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
