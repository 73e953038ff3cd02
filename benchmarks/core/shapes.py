"""Whole models to measure: the shapes of the released ones with weights drawn on the spot, as no download is needed for time and memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.core.cases import DENSE_SCALES, SIDES
from mvar_models import MVAR, VAR, VQVAE, MVARConfig, VARConfig, VQVAEConfig
from mvar_models.networks.transformer import ScaleTransformer

KINDS: dict[str, tuple[type[ScaleTransformer], type]] = {"var": (VAR, VARConfig), "mvar": (MVAR, MVARConfig)}


@dataclass(frozen=True)
class Shape:
    """depth blocks of `width` (default 64 depth, as released; heads of 64) over the scales of `pixels`; dtype is autocast's, float32 is without."""

    depth: int
    pixels: str = "256px"
    batch: int = 1
    dtype: torch.dtype = torch.float32
    width: int | None = None
    vocab_size: int = 4096
    sides: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        width = self.width or 64 * self.depth
        blocks = f"d{self.depth}" if width == 64 * self.depth else f"{self.depth} blocks of width {width}"
        return f"{blocks}, {self.pixels}, batch {self.batch}, {str(self.dtype).removeprefix('torch.')}"

    def config(self, arch: str) -> VARConfig | MVARConfig:
        width = self.width or 64 * self.depth
        sides = self.sides or SIDES[self.pixels]
        dense = {"dense_scales": min(DENSE_SCALES, len(sides))} if arch == "mvar" else {}
        heads = max(1, width // 64)
        return KINDS[arch][1](
            depth=self.depth, width=width, num_heads=heads, vocab_size=self.vocab_size, sides=sides, **dense
        )

    def build(self, arch: str, device: torch.device, seed: int = 0) -> ScaleTransformer:
        torch.manual_seed(seed)
        return spread(KINDS[arch][0](self.config(arch))).to(device)


@torch.no_grad()
def spread(model: ScaleTransformer) -> ScaleTransformer:
    """Undo the small factors of a model that was never trained (gates 1e-3, head 0.02), so that a wrong attention shows in the loss."""
    model.head.weight /= 0.02
    for block in model.blocks:
        gates = (
            block.modulation_offset[:2]
            if block.shared_adaln
            else block.modulation.weight[: 2 * model.config.width]
        )
        gates *= 1e3
    return model


def tokenizer(shape: Shape, channels: int = 160) -> VQVAE:
    """The released VQVAE's shape, or a narrower one, for the model's codes."""
    torch.manual_seed(1)
    sides = shape.sides or SIDES[shape.pixels]
    return VQVAE(VQVAEConfig(vocab_size=shape.vocab_size, channels=channels, sides=sides)).eval()
