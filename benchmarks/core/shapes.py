"""Whole models to measure: the released shapes with random weights. Time and memory need no trained ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.core.cases import DENSE_SCALES, SIDES
from mvar_models.config import TransformerConfig, VQVAEConfig
from mvar_models.networks.transformer import ScaleTransformer
from mvar_models.networks.vqvae import VQVAE
from mvar_models.registry import architecture

ARCHITECTURES = ("var", "mvar")


@dataclass(frozen=True)
class Shape:
    """The size of a transformer, for either architecture.

    Attributes:
        depth: Number of blocks.
        pixels: A key of `SIDES`: the resolution whose scales the model has.
        batch: Images at a time.
        dtype: Autocast type in training, type of the weights in sampling; float32 is without autocast.
        width: Channels; default 64 per block, as released. Heads have 64 channels.
        vocab_size: Number of codes.
        sides: Scales instead of those of `pixels`.
    """

    depth: int
    pixels: str = "256px"
    batch: int = 1
    dtype: torch.dtype = torch.float32
    width: int | None = None
    vocab_size: int = 4096
    sides: tuple[int, ...] | None = None

    @classmethod
    def from_json(cls, dtype: str, sides: list[int] | None = None, **rest: Any) -> Shape:
        """Build a shape from JSON values: `dtype` by name, `sides` as a list."""
        return cls(dtype=getattr(torch, dtype), sides=None if sides is None else tuple(sides), **rest)

    @property
    def name(self) -> str:
        width = self.width or 64 * self.depth
        blocks = f"d{self.depth}" if width == 64 * self.depth else f"{self.depth} blocks of width {width}"
        return f"{blocks}, {self.pixels}, batch {self.batch}, {str(self.dtype).removeprefix('torch.')}"

    def config(self, arch: str) -> TransformerConfig:
        """Return the configuration of this size; `arch` is a name of the registry."""
        width = self.width or 64 * self.depth
        sides = self.sides or SIDES[self.pixels]
        config_class = architecture(arch).config_class()
        dense = {}
        if "dense_scales" in config_class.field_names():
            dense["dense_scales"] = min(DENSE_SCALES, len(sides))
        config: TransformerConfig = config_class(
            depth=self.depth,
            width=width,
            num_heads=max(1, width // 64),
            vocab_size=self.vocab_size,
            sides=sides,
            **dense,
        )
        return config

    def build(self, arch: str, device: torch.device, seed: int = 0) -> ScaleTransformer:
        """Return a model with random weights."""
        torch.manual_seed(seed)
        model: ScaleTransformer = architecture(arch).network_class()(self.config(arch))
        return amplify(model).to(device)


@torch.no_grad()
def amplify(model: ScaleTransformer) -> ScaleTransformer:
    """Undo the small factors of fresh weights, so that wrong attention shows in the loss."""
    # The factors of `init_weights`: 0.02 for the head, 1e-3 for the gates.
    model.head.weight /= 0.02
    for block in model.blocks:
        if block.shared_adaln:
            gates = block.modulation_offset[:2]
        else:
            gates = block.modulation.weight[: 2 * model.config.width]
        gates *= 1e3
    return model


def tokenizer(shape: Shape, channels: int = 160) -> VQVAE:
    """Return a VQVAE with random weights for the model's codes; 160 channels are the released one's."""
    torch.manual_seed(1)
    sides = shape.sides or SIDES[shape.pixels]
    return VQVAE(VQVAEConfig(vocab_size=shape.vocab_size, channels=channels, sides=sides)).eval()
