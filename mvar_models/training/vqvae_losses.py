"""The optional adversarial loss of the VQVAE, VQGAN's (arXiv 2012.09841).

It is a patch discriminator, hinge losses, and a weight that balances gradients.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvar_models.distributed import Processes

_BETAS = (0.5, 0.9)
_LARGEST_WEIGHT = 1e4
# Losses are scaled up before their gradients are taken, which fp16 would round to zero; the ratio is kept.
_LIFT = 1024.0


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
