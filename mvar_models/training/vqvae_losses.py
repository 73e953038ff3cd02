"""Optional losses of the VQVAE beside reconstruction: a perceptual one (LPIPS, extra `perceptual`) and an adversarial one (VQGAN,
arXiv 2012.09841: a patch discriminator, hinge losses, and a weight that balances gradients)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from mvar_models.optional import require

_BETAS = (0.5, 0.9)
_LARGEST_WEIGHT = 1e4
# Both gradients are taken of losses this much larger, so that under fp16 they are not rounded to zero; their ratio stays.
_LIFT = 1024.0


class PatchDiscriminator(nn.Module):
    """Real or not, for every patch: pictures (n, 3, R, R) -> logits (n, 1, r, r) (PatchGAN, arXiv 1611.07004).

    GroupNorm in place of its BatchNorm: no statistics of one batch leak into another, so nothing depends on how a batch is divided.
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
        return self.layers(images)


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Of the discriminator: real logits above 1 and fake ones below -1 cost nothing."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def balance(reconstruction: Tensor, adversarial: Tensor, weight: Tensor) -> Tensor:
    """Factor that makes the adversarial loss pull at `weight`, the decoder's last, as hard as the other losses do: at most 1e4."""
    of_reconstruction, of_adversarial = (
        mean_over_processes(torch.autograd.grad(loss * _LIFT, weight, retain_graph=True)[0].float()).norm()
        for loss in (reconstruction, adversarial)
    )
    return (of_reconstruction / (of_adversarial + 1e-4 * _LIFT)).clamp(0, _LARGEST_WEIGHT).detach()


class Adversary:
    """The discriminator with its optimizer: judges reconstructions, and learns from the same step's pictures.

    Args:
        resolution: side of the pictures.
        weight: of the adversarial loss, over the balance of gradients.
        lr: peak learning rate.
    """

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
        self, reconstructed: Tensor, others: Tensor, last_weight: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """What the decoder is to lower, given the sum of its other losses and its last weight."""
        self.discriminator.requires_grad_(False)
        adversarial = -self._judge(reconstructed).mean()
        factor = balance(others, adversarial, last_weight)
        self.discriminator.requires_grad_(True)
        return self.weight * factor * adversarial, {
            "adversarial": adversarial.item(),
            "adversarial_balance": factor.item(),
        }

    def learn(self, images: Tensor, reconstructed: Tensor, share: float) -> dict[str, float]:
        """Add to the discriminator's gradients those of a part of the batch, which is `share` of what this process has of it."""
        real, fake = self._judge(images).float(), self._judge(reconstructed.detach()).float()
        loss = hinge_loss(real, fake)
        (loss * share).backward()
        return {
            "discriminator": loss.item(),
            "judged_right": 0.5 * ((real > 0).float().mean() + (fake < 0).float().mean()).item(),
        }

    def step(self, factor: float) -> None:
        """One step of the discriminator with the gradients that `learn` left, at `factor` of its peak rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * factor
        for parameter in self.discriminator.parameters():
            if parameter.grad is not None:
                parameter.grad = mean_over_processes(parameter.grad)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _judge(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            return self.discriminator(images.float())

    def state_dict(self) -> dict[str, Any]:
        return {"discriminator": self.discriminator.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])


def mean_over_processes(tensor: Tensor) -> Tensor:
    """The mean over the processes of a distributed run; the tensor itself where there is one process."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(tensor)
        tensor /= dist.get_world_size()
    return tensor


class Perceptual(nn.Module):
    """LPIPS (arXiv 1801.03924) between pictures (n, 3, R, R) in [-1, 1]: mean over pictures. Its first use downloads the weights of VGG16.

    Raises:
        ImportError: the extra `perceptual` is not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.network = (
            require("lpips", "perceptual").LPIPS(net="vgg", verbose=False).eval().requires_grad_(False)
        )

    def forward(self, images: Tensor, originals: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            return self.network(images.float(), originals.float()).mean()
