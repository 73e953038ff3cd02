"""The image tokenizer of VAR (arXiv 2404.02905): convolutional encoder, multi-scale quantizer, decoder."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvar_models.checkpoints.pretrained import PretrainedModel
from mvar_models.config import VQVAEConfig
from mvar_models.devices import fit_batch
from mvar_models.networks.layers import input_dtype, is_untouched
from mvar_models.networks.quantizer import MultiScaleQuantizer

# Pixels decoded at a time: four images of 256 px, for each of which the released decoder holds 0.3 GB.
_PIXELS_AT_A_TIME = 4 * 256 * 256


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


def _norm_silu(norm: nn.GroupNorm, features: Tensor) -> Tensor:
    """Apply the norm and SiLU; the norm computes in float32, its result has the type of `features`."""
    return F.silu(norm(features), inplace=_owns_output(norm, nn.GroupNorm))


def _add_branch(features: Tensor, branch: Tensor, conv: nn.Module) -> Tensor:
    """Return features + branch, where `conv` computed `branch`.

    Memory for a sum of 160 x 256 x 256 values takes a CPU 30 times as long as adding them in place.
    """
    if _owns_output(conv, nn.Conv2d) and branch.dtype == features.dtype:
        return branch.add_(features)
    return features + branch


def _owns_output(module: nn.Module, usual: type[nn.Module]) -> bool:
    """Return whether what the module returned may be overwritten: no gradients, and no hook may hold it."""
    return not torch.is_grad_enabled() and is_untouched(module, usual)


class ResidualBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = _norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        self.norm2 = _norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, kernel_size=1)

    def forward(self, features: Tensor) -> Tensor:
        hidden = self.conv1(_norm_silu(self.norm1, features))
        branch = self.conv2(_norm_silu(self.norm2, hidden))
        return _add_branch(self.shortcut(features), branch, self.conv2)


class GlobalAttention(nn.Module):
    """One head of attention over all positions of the grid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, kernel_size=1)
        self.proj = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, features: Tensor) -> Tensor:
        batch, channels, height, width = features.shape
        qkv = self.qkv(self.norm(features)).view(batch, 3, channels, height * width).transpose(2, 3)
        query, key, value = qkv.unsqueeze(2).unbind(1)  # (B, 1, N, C) each
        out = F.scaled_dot_product_attention(query, key, value, scale=1 / math.sqrt(channels))
        branch = self.proj(out.squeeze(1).transpose(1, 2).reshape(features.shape))
        return _add_branch(features, branch, self.proj)


class Downsample(nn.Conv2d):
    """Halves the grid with stride 2; zeros pad one row below and one column on the right, as released."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, kernel_size=3, stride=2)

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(F.pad(features, (0, 1, 0, 1)))


class Upsample(nn.Conv2d):
    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, kernel_size=3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(F.interpolate(features, scale_factor=2, mode="nearest"))


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention if asked for, then a resizing layer."""

    def __init__(
        self, in_channels: int, out_channels: int, blocks: int, attention: bool, resize: nn.Module
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ResidualBlock(in_channels if i == 0 else out_channels, out_channels) for i in range(blocks)
        )
        self.attentions = nn.ModuleList(
            GlobalAttention(out_channels) for _ in range(blocks if attention else 0)
        )
        self.resize = resize

    def forward(self, features: Tensor) -> Tensor:
        for i, block in enumerate(self.blocks):
            features = block(features)
            if self.attentions:
                features = self.attentions[i](features)
        return self.resize(features)


class Middle(nn.Sequential):
    def __init__(self, channels: int) -> None:
        super().__init__(
            ResidualBlock(channels, channels), GlobalAttention(channels), ResidualBlock(channels, channels)
        )


class Encoder(nn.Module):
    """(B, 3, R, R) -> (B, z, R / f, R / f). `levels` are ordered as they run: finest first."""

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        widths = [config.channels * multiplier for multiplier in config.channel_multipliers]
        deepest = len(widths) - 1
        self.conv_in = nn.Conv2d(3, config.channels, kernel_size=3, padding=1)
        self.levels = nn.ModuleList(
            Level(
                config.channels if i == 0 else widths[i - 1],
                width,
                config.blocks_per_level,
                attention=i == deepest,
                resize=nn.Identity() if i == deepest else Downsample(width),
            )
            for i, width in enumerate(widths)
        )
        self.middle = Middle(widths[-1])
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, kernel_size=3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv_in(images)
        for level in self.levels:
            features = level(features)
        return self.conv_out(_norm_silu(self.norm_out, self.middle(features)))


class Decoder(nn.Module):
    """(B, z, h, h) -> (B, 3, f h, f h). `levels` are ordered as they run: deepest first."""

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        widths = [config.channels * multiplier for multiplier in reversed(config.channel_multipliers)]
        finest = len(widths) - 1
        self.conv_in = nn.Conv2d(config.z_channels, widths[0], kernel_size=3, padding=1)
        self.middle = Middle(widths[0])
        self.levels = nn.ModuleList(
            Level(
                widths[max(i - 1, 0)],
                width,
                config.blocks_per_level + 1,
                attention=i == 0,
                resize=nn.Identity() if i == finest else Upsample(width),
            )
            for i, width in enumerate(widths)
        )
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 3, kernel_size=3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        features = self.middle(self.conv_in(latents))
        for level in self.levels:
            features = level(features)
        return self.conv_out(_norm_silu(self.norm_out, features))


class VQVAE(PretrainedModel):
    """Converts images in [-1, 1] to code indices of a scale pyramid and back.

    Shapes: images (B, 3, R, R) with R = config.resolution, indices (B, L) int64, latents (B, z, h, h) with
    h = config.sides[-1].
    """

    config: VQVAEConfig
    config_class = VQVAEConfig

    @torch.inference_mode(False)  # or its parameters could never be trained
    def __init__(self, config: VQVAEConfig | None = None) -> None:
        super().__init__()
        self.config = config or VQVAEConfig()
        z = self.config.z_channels
        self.encoder = Encoder(self.config)
        self.quant_conv = nn.Conv2d(z, z, kernel_size=3, padding=1)
        self.quantizer = MultiScaleQuantizer(self.config)
        self.post_quant_conv = nn.Conv2d(z, z, kernel_size=3, padding=1)
        self.decoder = Decoder(self.config)

    @torch.inference_mode(False)
    def set_sides(self, sides: Sequence[int]) -> None:
        """Switch to another pyramid with the same weights: the released VQVAE serves 256, 512 and 1024 px.

        Usage counts of codes are reset if the number of scales changes.
        """
        self.config = self.config.replace(sides=tuple(sides), residual_convolution_of_scale=None)
        old = self.quantizer.code_usage
        self.quantizer.sides = self.config.sides
        self.quantizer.convolution_of_scale = self.config.residual_convolution_of_scale
        if old.shape[0] != len(self.config.sides):
            self.quantizer.code_usage = old.new_zeros(len(self.config.sides), old.shape[1])

    def with_sides(self, sides: Sequence[int]) -> VQVAE:
        """Return a VQVAE for another pyramid that shares these weights; `set_sides` changes this one."""
        shared = {id(tensor): tensor for tensor in (*self.parameters(), *self.buffers())}
        other = copy.deepcopy(self, shared)  # type: ignore[arg-type]
        other.set_sides(sides)
        return other

    def latents(self, images: Tensor) -> Tensor:
        """Encode images to continuous latents, before quantization."""
        side = self.config.resolution
        if images.dim() != 4 or tuple(images.shape[1:]) != (3, side, side):
            raise ValueError(f"images must be (B, 3, {side}, {side}), got {tuple(images.shape)}")
        return self.quant_conv(self.encoder(images))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Encode images to the indices of every scale."""
        indices, _ = self.quantizer.quantize(self.latents(images))
        return indices

    def convert_decoder(self, dtype: torch.dtype, channels_last: bool = False) -> None:
        """Convert the decoder alone, in place: its weights' type and the memory format that it runs in.

        The quantizer keeps its type, so codes stay as they are; pixels change by the rounding of the type.

        Args:
            dtype: Type of the decoder's weights and activations.
            channels_last: Whether channels are innermost in memory.
        """
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        for part in (self.post_quant_conv, self.decoder):
            part.to(dtype=dtype, memory_format=memory_format)  # type: ignore[call-overload]  # torch's own

    def decode_latents(self, f_hat: Tensor) -> Tensor:
        """Decode latents to images in the decoder's type, clamped to [-1, 1]."""
        dtype = input_dtype(self.post_quant_conv)
        f_hat = f_hat.to(dtype)
        # Without instructions for half precision, PyTorch's convolutions on a CPU are nine times as fast with
        # channels last (152 ms against 18 for 160 channels at 16 x 16 with AVX2).
        emulated = f_hat.device.type == "cpu" and dtype in (torch.bfloat16, torch.float16)
        converted = any(
            each.dim() == 4
            and each.is_contiguous(memory_format=torch.channels_last)
            and not each.is_contiguous()
            for each in self.post_quant_conv.parameters()
        )
        if emulated or converted:
            f_hat = f_hat.contiguous(memory_format=torch.channels_last)
        return self.decoder(self.post_quant_conv(f_hat)).clamp(-1, 1)

    def decode_slices(self, f_hat: Tensor) -> Iterator[Tensor]:
        """Decode latents (B, z, h, h) as `decode_latents` does, a few at a time, which bounds memory."""
        step = fit_batch(_PIXELS_AT_A_TIME, self.config.resolution**2)
        for part in f_hat.split(step):
            yield self.decode_latents(part)

    @torch.no_grad()
    def decode(self, indices: Tensor) -> Tensor:
        """Decode the indices of every scale to images."""
        if indices.dim() != 2 or indices.shape[1] != self.config.length:
            raise ValueError(f"indices must be (B, {self.config.length}), got {tuple(indices.shape)}")
        return self.decode_latents(self.quantizer.embed(indices))
