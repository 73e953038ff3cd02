"""Multi-scale residual quantization (VAR, arXiv 2404.02905, algorithms 1 and 2).

A latent is coded coarse to fine: each scale codes what the coarser ones left over. f_hat is the running
sum. The input that a transformer sees at scale s + 1 is f_hat of scales 1 .. s, resized to that scale,
which is what makes MVAR a Markov chain over scales.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvar_models.config import VQVAEConfig
from mvar_models.networks.layers import is_plain


class ResidualConvolution(nn.Conv2d):
    """Applies phi(x) = (1 - r) x + r conv3x3(x) to the code vectors of a scale after they are resized."""

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__(channels, channels, kernel_size=3, padding=1)
        self.ratio = ratio

    def forward(self, features: Tensor) -> Tensor:
        return features * (1 - self.ratio) + super().forward(features) * self.ratio


class MultiScaleQuantizer(nn.Module):
    """Converts latents (B, z, h, h) to codes (B, L) and back.

    Tokens are packed coarse to fine, row by row inside a scale.
    """

    code_usage: Tensor

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        self.sides = config.sides
        self.codebook = nn.Embedding(config.vocab_size, config.z_channels)
        self.residual_convolutions = nn.ModuleList(
            ResidualConvolution(config.z_channels, config.residual_ratio)
            for _ in range(config.num_residual_convolutions)
        )
        self.convolution_of_scale = config.residual_convolution_of_scale
        # Moving average of how often each code occurs at each scale. Released files have it; inference
        # ignores it.
        self.register_buffer("code_usage", torch.zeros(len(config.sides), config.vocab_size))

    def quantize(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Quantize a latent (B, z, h, h); returns the indices (B, L) int64 and f_hat (B, z, h, h)."""
        rest = features.float()
        f_hat = torch.zeros_like(rest)
        indices = []
        for scale in range(len(self.sides)):
            codes = self.nearest_codes(self.pool(rest, scale))
            contribution = self.contribution(codes, scale)
            f_hat = f_hat + contribution
            rest = rest - contribution
            indices.append(codes)
        return torch.cat(indices, dim=1), f_hat

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Quantize a latent (B, z, h, h) with gradients, for training.

        Returns:
            f_hat (B, z, h, h), with the straight-through gradient to `features`.
            The codebook loss, which moves codes to the latent, averaged over scales.
            The commitment loss, which moves the latent to its codes, averaged over scales.
            The indices (B, L) int64.
        """
        features = features.float()
        rest, f_hat = features.detach(), torch.zeros_like(features)
        indices, codebook_losses, commitment_losses = [], [], []
        for scale in range(len(self.sides)):
            codes = self.nearest_codes(self.pool(rest, scale).detach())
            contribution = self.contribution(codes, scale)
            f_hat = f_hat + contribution
            rest = rest - contribution.detach()
            indices.append(codes)
            codebook_losses.append(F.mse_loss(f_hat, features.detach()))
            commitment_losses.append(F.mse_loss(features, f_hat.detach()))
        straight_through = features + (f_hat - features).detach()
        return (
            straight_through,
            torch.stack(codebook_losses).mean(),
            torch.stack(commitment_losses).mean(),
            torch.cat(indices, dim=1),
        )

    def pool(self, features: Tensor, scale: int) -> Tensor:
        """Resize (B, z, h, h) to the side of a scale; the finest scale needs no resizing."""
        side = self.sides[scale]
        return (
            features
            if features.shape[-1] == side
            else F.interpolate(features, size=(side, side), mode="area")
        )

    def code_vectors(self) -> Tensor:
        """Return the vectors of all codes, (V, z)."""
        if is_plain(self.codebook, kind=nn.Embedding):
            return self.codebook.weight
        return self.codebook(torch.arange(self.code_usage.shape[1], device=self.code_usage.device))

    def nearest_codes(self, features: Tensor) -> Tensor:
        """Return the nearest code of every position by squared distance: (B, z, n, n) -> (B, n * n)."""
        batch, channels = features.shape[:2]
        vectors = features.permute(0, 2, 3, 1).reshape(-1, channels)
        codebook = self.code_vectors().float()
        # |v|^2 is the same for every code, so |v - e|^2 is compared without it.
        distance = torch.addmm(codebook.square().sum(dim=1), vectors, codebook.T, alpha=-2)
        return distance.argmin(dim=1).view(batch, -1)

    def contribution(self, indices: Tensor, scale: int) -> Tensor:
        """Return what the codes (B, n * n) of one scale add to f_hat: (B, z, h, h)."""
        return self.contribution_of_vectors(self.codebook(indices), scale)

    def contribution_of_vectors(self, vectors: Tensor, scale: int) -> Tensor:
        """Return what vectors (B, n * n, z) of one scale add to f_hat: codes' vectors or mixtures of them."""
        side, final_side = self.sides[scale], self.sides[-1]
        features = vectors.transpose(1, 2).reshape(vectors.shape[0], -1, side, side)
        if side != final_side:
            features = F.interpolate(features, size=(final_side, final_side), mode="bicubic")
        return self.residual_convolutions[self.convolution_of_scale[scale]](features)

    def embed(self, indices: Tensor) -> Tensor:
        """Convert indices (B, L) to f_hat (B, z, h, h), the latent that the decoder takes."""
        *_, f_hat = self.accumulate(indices)
        return f_hat

    def accumulate(self, indices: Tensor) -> Iterator[Tensor]:
        """Yield f_hat (B, z, h, h) after each scale of indices (B, L); tensors yielded stay valid."""
        f_hat: Tensor | None = None
        offset = 0
        for scale, side in enumerate(self.sides):
            contribution = self.contribution(indices[:, offset : offset + side * side], scale)
            f_hat = contribution if f_hat is None else f_hat + contribution
            offset += side * side
            yield f_hat

    def next_input(self, f_hat: Tensor, scale: int) -> Tensor:
        """Return the transformer input of `scale`, (B, n * n, z): f_hat of the scales before it, resized.

        The coarsest scale has none, (B, 0, z): its input is the class.
        """
        if scale == 0:
            return f_hat.new_empty(f_hat.shape[0], 0, f_hat.shape[1])
        return self.pool(f_hat, scale).flatten(2).transpose(1, 2)

    def scale_inputs(self, indices: Tensor) -> Tensor:
        """Return the inputs of all scales but the coarsest under teacher forcing: (B, L) -> (B, L - 1, z)."""
        last = len(self.sides) - 1
        inputs = [
            self.next_input(f_hat, s + 1) for s, f_hat in enumerate(self.accumulate(indices)) if s < last
        ]
        if not inputs:
            return self.code_vectors().new_empty(indices.shape[0], 0, self.code_vectors().shape[1])
        return torch.cat(inputs, dim=1)
