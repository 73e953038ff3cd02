"""The scorer of LSRS (arXiv 2512.03796): how real the feature map looks after a scale, given class and scale.

Shapes: N maps of z channels and n x n positions, all at the side of the last scale.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvar_models.checkpoints.pretrained import PretrainedModel
from mvar_models.config import CONFIG_NAME, SIDES_256, Config, Count, Sides, TransformerConfig, Width

_SLOPE = 0.2
_DROPOUT = 0.05
_LEVELS = 3
_EMBEDDING = 128


@dataclasses.dataclass(frozen=True)
class ScorerConfig(Config):
    """The scorer of LSRS (arXiv 2512.03796).

    Attributes:
        num_classes: Number of classes.
        z_channels: Channels of the feature map, the length of a code vector.
        sides: Grid side of each scale, coarse to fine; the last must be divisible by 8.
        width: Channels of the first level.
    """

    model_type: ClassVar[str] = "lsrs-scorer"

    num_classes: Count = 1000
    z_channels: Width = 32
    sides: Sides = SIDES_256
    width: Width = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sides[-1] % 8:
            raise ValueError(f"a scorer needs a last side that is divisible by 8, got {self.sides[-1]}")


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions and a 1 x 1, each with a norm over channels and positions, beside a shortcut."""

    def __init__(self, in_channels: int, channels: int, side: int, stride: int) -> None:
        super().__init__()
        shape = (channels, side // stride, side // stride)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.ln1 = nn.LayerNorm(shape)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.ln2 = nn.LayerNorm(shape)
        self.conv3 = nn.Conv2d(channels, channels, 1, bias=False)
        self.ln3 = nn.LayerNorm(shape)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            convolution = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.LayerNorm(shape))

    def forward(self, features: Tensor) -> Tensor:
        hidden = F.leaky_relu(self.ln1(self.conv1(features)), _SLOPE)
        hidden = F.leaky_relu(self.ln2(self.conv2(hidden)), _SLOPE)
        return F.leaky_relu(self.ln3(self.conv3(hidden)) + self.shortcut(features), _SLOPE)


class Scorer(PretrainedModel):
    """Scores feature maps; a higher score is more like the codes of a real image."""

    config_class = ScorerConfig
    config: ScorerConfig

    @torch.inference_mode(False)
    def __init__(self, config: ScorerConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ScorerConfig()
        side, channels = config.sides[-1], config.z_channels
        self.stages = nn.ModuleList()
        for level in range(_LEVELS):
            width = config.width << level
            first = ResidualBlock(channels, width, side, 2)
            side, channels = side // 2, width
            self.stages.append(nn.Sequential(first, ResidualBlock(width, width, side, 1)))
        self.class_embedding = nn.Embedding(config.num_classes, _EMBEDDING)
        self.class_proj = nn.Linear(_EMBEDDING, _EMBEDDING)
        self.scale_embedding = nn.Embedding(len(config.sides), _EMBEDDING)
        self.scale_proj = nn.Linear(_EMBEDDING, _EMBEDDING)
        self.fuser = nn.Sequential(
            nn.Linear(channels * side * side + 2 * _EMBEDDING, 8 * config.width),
            nn.LeakyReLU(_SLOPE),
            nn.Linear(8 * config.width, 4 * config.width),
            nn.LeakyReLU(_SLOPE),
            nn.Linear(4 * config.width, 2 * config.width),
        )
        self.out_proj = nn.Linear(2 * config.width, 1)
        self.init_weights()

    def init_weights(self) -> None:
        """Draw initial values as the released program does."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02)

    def forward(self, maps: Tensor, labels: Tensor, scale: int | Tensor) -> Tensor:
        """Score maps: (N,) in the type of the weights.

        Args:
            maps: (N, z, n, n), f_hat with the codes of `scale` added.
            labels: (N,) int64, real classes: there is no score without a class.
            scale: Index of the scale, or (N,) int64 with one for each map.
        """
        # Convolutions crash in backward on a CPU (torch 2.13) at the strides that a resized map has.
        hidden = maps.to(self.dtype).contiguous()
        for stage in self.stages:
            hidden = F.dropout(stage(hidden), _DROPOUT, self.training)
        scales = torch.as_tensor(scale, device=maps.device).expand(len(maps))
        known = [self.class_proj(self.class_embedding(labels)), self.scale_proj(self.scale_embedding(scales))]
        return self.out_proj(self.fuser(torch.cat([hidden.flatten(1), *known], dim=1)))[:, 0]

    def check_fits(self, config: TransformerConfig) -> None:
        """Raise ValueError unless the scorer was trained for the model's scales, latents and classes."""
        for name in ("sides", "z_channels", "num_classes"):
            own, other = getattr(self.config, name), getattr(config, name)
            if own != other:
                raise ValueError(f"scorer was trained for {name} {own}, the model has {other}")


@functools.lru_cache(maxsize=4)
def load_scorer(name: str, device: torch.device | str = "cpu") -> Scorer:
    """Load a scorer once per process.

    Args:
        name: Run folder of `mvar train-scorer`, whose best scorer by validation loss is taken, or as for
            `from_pretrained`.
        device: Where to put it.
    """
    best = Path(name) / "best"
    return Scorer.from_pretrained(best if (best / CONFIG_NAME).is_file() else name, device=device)


def score_margins(
    scorer: Scorer, sampled: Iterable[Tensor], real: Iterable[Tensor], labels: Tensor
) -> Tensor:
    """Return S(real) - S(sampled) for each pair and scale, (B, S).

    Args:
        scorer: The scorer.
        sampled: The feature map after every scale, (B, z, n, n) each, of codes that a model sampled.
        real: The same of images of the same classes (`MultiScaleQuantizer.accumulate`).
        labels: (B,) classes of the pairs.
    """
    margins = [
        scorer(true, labels, scale) - scorer(fake, labels, scale)
        for scale, (fake, true) in enumerate(zip(sampled, real))
    ]
    return torch.stack(margins, dim=1)


def ranking_loss(margins: Tensor) -> Tensor:
    """Average -log sigmoid of `score_margins` over pairs and scales."""
    return F.softplus(-margins).mean()
