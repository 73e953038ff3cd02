"""The transformer that VAR and MVAR share; they differ in who attends to whom, nothing else.

Shapes: B pictures, L tokens of all scales packed coarse to fine, C width, H heads, V codes, z channels of a code.
"""

from __future__ import annotations

import abc
import math
import os
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mvar_kernels.attention import neighborhood_attn
from mvar_kernels.pyramid import Neighborhood
from mvar_models.checkpoints.pretrained import PretrainedModel
from mvar_models.config import TransformerConfig
from mvar_models.networks.recompute import after_attention, is_plain, modulated_linear, modulated_norm

T = TypeVar("T", bound="ScaleTransformer")

MAX_LOG_SCALE = math.log(100)
_LOSS_CHUNK_TOKENS = 4096


class KVCache:
    """Keys and values of the scales drawn so far, one entry per block; only VAR needs one."""

    def __init__(self) -> None:
        self.entries: dict[int, tuple[Tensor, Tensor]] = {}

    def extend(self, block: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append (B, n, H, D) keys and values; returns all of them so far."""
        if block in self.entries:
            old_key, old_value = self.entries[block]
            key, value = torch.cat([old_key, key], dim=1), torch.cat([old_value, value], dim=1)
        self.entries[block] = key, value
        return key, value


class SelfAttention(nn.Module):
    """Packed qkv without a key bias; with cosine attention the learned factor of each head is exp(min(log_scale, log 100))."""

    def __init__(self, config: TransformerConfig, index: int) -> None:
        super().__init__()
        self.index = index
        self.num_heads = config.num_heads
        self.scale = config.attention_scale
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(config.width))
        self.v_bias = nn.Parameter(torch.zeros(config.width))
        self.log_scale = (
            nn.Parameter(torch.full((config.num_heads,), math.log(4))) if config.cosine_attention else None
        )
        self.proj = nn.Linear(config.width, config.width)

    def bias(self) -> Tensor:
        """(3 C,) of the packed projection; keys have none."""
        return torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])

    def attend(
        self, qkv: Tensor, neighborhood: Neighborhood, backend: str, cache: KVCache | None = None
    ) -> Tensor:
        """Packed (B, n, 3 C) -> (B, n, C), heads side by side, before `proj`."""
        query, key, value = qkv.unflatten(-1, (3, self.num_heads, -1)).unbind(2)  # (B, n, H, D) views
        if cache is not None:
            key, value = cache.extend(self.index, key, value)
        logit_scale = None if self.log_scale is None else self.log_scale.clamp_max(MAX_LOG_SCALE).exp()
        return neighborhood_attn(
            query, key, value, neighborhood, scale=self.scale, logit_scale=logit_scale, backend=backend
        ).flatten(2)


class FeedForward(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        hidden = round(config.width * config.mlp_ratio)
        self.fc1 = nn.Linear(config.width, hidden)
        self.fc2 = nn.Linear(hidden, config.width)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(hidden), approximate="tanh"))


class Block(nn.Module):
    """Attention and feed-forward, each modulated by the class (AdaLN): six vectors of width C per picture.

    With shared AdaLN they come from outside and the block learns an offset; otherwise from a linear of its own.
    """

    def __init__(self, config: TransformerConfig, index: int) -> None:
        super().__init__()
        width = config.width
        self.attention = SelfAttention(config, index)
        self.mlp = FeedForward(config)
        if config.shared_adaln:
            self.modulation_offset = nn.Parameter(torch.zeros(6, width))
        else:
            self.modulation = nn.Linear(width, 6 * width)
        self.shared_adaln = config.shared_adaln

    def forward(
        self,
        hidden: Tensor,
        condition: Tensor,
        neighborhood: Neighborhood,
        backend: str,
        path_keep: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """condition: (B, 6 C) with shared AdaLN, else SiLU of the class embedding (B, C). path_keep: (2, B) factors of the two branches."""
        if self.shared_adaln:
            modulation = condition.unflatten(-1, (6, -1)) + self.modulation_offset
        else:
            modulation = self.modulation(condition).unflatten(-1, (6, -1))
        gate1, gate2, scale1, scale2, shift1, shift2 = modulation.unsqueeze(1).unbind(2)  # (B, 1, C) each
        if path_keep is not None:
            gate1, gate2 = gate1 * path_keep[0, :, None, None], gate2 * path_keep[1, :, None, None]
        attention, mlp = self.attention, self.mlp
        if is_plain(attention.qkv, attention.proj, mlp.fc1, mlp.fc2):
            qkv = modulated_linear(hidden, scale1, shift1, attention.qkv.weight, attention.bias())
            attended = attention.attend(qkv, neighborhood, backend, cache)
            return after_attention(
                hidden, attended, gate1, attention.proj, scale2, shift2, mlp.fc1, mlp.fc2, gate2
            )
        # Someone put something else in a linear's place, or hooked it: it is called, and backward keeps what autograd keeps.
        qkv = attention.qkv(modulated_norm(hidden, scale1, shift1)) + attention.bias()
        hidden = hidden + attention.proj(attention.attend(qkv, neighborhood, backend, cache)) * gate1
        return hidden + mlp(modulated_norm(hidden, scale2, shift2)) * gate2


class ScaleTransformer(PretrainedModel, abc.ABC):
    """Predicts the codes of every scale from the class and the inputs of the scales (`MultiScaleQuantizer.scale_inputs`).

    Subclasses say who attends to whom through `neighborhood`.
    """

    config: TransformerConfig

    def __init__(self, config: TransformerConfig | None = None) -> None:
        super().__init__()
        self.config = config or self.config_class()
        config, width = self.config, self.config.width
        self.attention_backend = "auto"
        self.gradient_checkpointing = False
        self.pyramid = config.pyramid()
        self.token_embedding = nn.Linear(config.z_channels, width)
        self.class_embedding = nn.Embedding(config.num_classes + 1, width)
        self.start_position = nn.Parameter(torch.empty(1, width))
        self.positions = nn.Parameter(torch.empty(config.length, width))
        self.scale_embedding = nn.Embedding(len(config.sides), width)
        self.shared_modulation = nn.Linear(width, 6 * width) if config.shared_adaln else None
        self.blocks = nn.ModuleList(Block(config, index) for index in range(config.depth))
        self.head_modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, config.vocab_size)
        self.reset_buffers()
        self.init_weights()

    def reset_buffers(self) -> None:
        # The scale of each token is a function of the configuration, so files do not store it.
        scale_of_token = self.config.scale_of_token().to(self.positions.device)
        self.register_buffer("scale_of_token", scale_of_token, persistent=False)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Initial values of the released recipe."""
        config = self.config
        std = math.sqrt(1 / config.width / 3)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.trunc_normal_(module.weight, std=std)
                if getattr(module, "bias", None) is not None:
                    nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.start_position, std=std)
        nn.init.trunc_normal_(self.positions, std=std)
        self.head.weight *= 0.02
        self.head_modulation.weight *= 0.5
        for block in self.blocks:
            block.attention.proj.weight /= math.sqrt(2 * config.depth)
            block.mlp.fc2.weight /= math.sqrt(2 * config.depth)
            if config.shared_adaln:
                six = nn.init.normal_(block.modulation_offset, std=1 / math.sqrt(config.width))
            else:
                six = block.modulation.weight.view(6, config.width, config.width)
            six[:2] *= 1e-3
            six[2:] *= 0.5

    @classmethod
    def from_pretrained(
        cls: type[T], name: str | os.PathLike[str], *, num_classes: int | None = None, **options: Any
    ) -> T:
        """As `PretrainedModel.from_pretrained`; `num_classes` other than the checkpoint's draws the class embeddings anew (`replace_classes`)."""
        model = super().from_pretrained(name, **options)
        if num_classes is not None and num_classes != model.config.num_classes:
            model.replace_classes(num_classes)
        return model

    @torch.no_grad()
    def replace_classes(self, num_classes: int, class_names: Sequence[str] | None = None) -> None:
        """New class embeddings, drawn as at the start of training (from torch's generator); the unconditional row is kept.

        Raises:
            ValueError: fewer than one class, or another number of names.
        """
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        self.config = self.config.replace(num_classes=num_classes, class_names=class_names)
        old = self.class_embedding.weight
        new = torch.empty(num_classes + 1, old.shape[1])
        nn.init.trunc_normal_(new, std=math.sqrt(1 / self.config.width / 3))
        new = new.to(device=old.device, dtype=old.dtype)
        new[-1] = old[-1]
        self.class_embedding = nn.Embedding(num_classes + 1, old.shape[1], _weight=new)

    # Guidance at which sampling needs no unconditional pass; the released programs differ here.
    skips_guidance_at: float

    @abc.abstractmethod
    def neighborhood(self, scales: range) -> Neighborhood:
        """Who attends to whom among the tokens of `scales`, packed."""

    @abc.abstractmethod
    def step_neighborhood(self, scale: int) -> Neighborhood:
        """Who attends to whom when sampling draws `scale`: its tokens over the cache, or over themselves."""

    @abc.abstractmethod
    def new_cache(self) -> KVCache | None:
        """What sampling carries from scale to scale, if anything."""

    def check_scales(self, scales: range | None) -> range:
        """The range to compute; ValueError for one that this model cannot compute alone."""
        count = len(self.config.sides)
        if scales is None:
            return range(count)
        if not isinstance(scales, range) or scales.step != 1 or not 0 <= scales.start < scales.stop <= count:
            raise ValueError(f"scales must be a range inside 0 .. {count} with step 1, got {scales!r}")
        return scales

    def forward(
        self,
        labels: Tensor,
        scale_inputs: Tensor,
        scales: range | None = None,
        path_keep: Tensor | None = None,
    ) -> Tensor:
        """Teacher-forcing logits, (B, n, V) float32 for the n tokens of `scales` (default: all L).

        Args:
            labels: (B,) int64, 0 .. num_classes - 1, or num_classes for the unconditional class. None is dropped here.
            scale_inputs: (B, L - 1, z), always whole.
            scales: range of scales to compute; VAR's must start at 0.
            path_keep: (depth, 2, B) factors of the residual branches, for stochastic depth; drawn by the caller.
        """
        scales = self.check_scales(scales)
        hidden, class_embedding = self.hidden_states(labels, scale_inputs, scales, path_keep)
        return self.logits(hidden, class_embedding)

    def hidden_states(
        self, labels: Tensor, scale_inputs: Tensor, scales: range, path_keep: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """States before the head (B, n, C) and the class embedding (B, C)."""
        self._check_inputs(labels, scale_inputs)
        class_embedding = self.class_embedding(labels)
        offsets = (*self.pyramid.offsets, self.pyramid.length)
        start, stop = offsets[scales.start], offsets[scales.stop]
        hidden = self.embed(class_embedding, scale_inputs[:, max(start - 1, 0) : stop - 1], scales)
        return self.run_blocks(hidden, class_embedding, self.neighborhood(scales), path_keep), class_embedding

    def embed(self, class_embedding: Tensor, inputs: Tensor, scales: range) -> Tensor:
        """Block inputs (B, n, C) of consecutive scales; `inputs` (B, n', z) holds those of the scales after the first of all."""
        parts = []
        if scales.start == 0:
            parts.append(class_embedding.unsqueeze(1) + self.start_position)
        if inputs.shape[1]:
            parts.append(self.token_embedding(inputs.to(self.token_embedding.weight.dtype)))
        tokens = slice(self.pyramid.offsets[scales.start], self.pyramid.scale_slice(scales.stop - 1).stop)
        where = self.positions[tokens] + self.scale_embedding(self.scale_of_token[tokens])
        return (torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]) + where

    def run_blocks(
        self,
        hidden: Tensor,
        class_embedding: Tensor,
        neighborhood: Neighborhood,
        path_keep: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        condition = F.silu(class_embedding)
        if self.shared_modulation is not None:
            condition = self.shared_modulation(condition)
        for index, block in enumerate(self.blocks):
            keep = None if path_keep is None else path_keep[index]
            args = (hidden, condition, neighborhood, self.attention_backend, keep, cache)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                hidden = checkpoint(block, *args, use_reentrant=False)
            else:
                hidden = block(*args)
        return hidden

    def logits(self, hidden: Tensor, class_embedding: Tensor) -> Tensor:
        """(B, n, C) -> (B, n, V) float32; the norm runs in float32, the matmul follows autocast."""
        scale, shift = (
            self.head_modulation(F.silu(class_embedding)).unflatten(-1, (2, -1)).unsqueeze(1).unbind(2)
        )
        normed = modulated_norm(hidden.to(torch.promote_types(hidden.dtype, torch.float32)), scale, shift)
        return self.head(normed.to(self.head.weight.dtype)).float()

    def loss(
        self,
        labels: Tensor,
        scale_inputs: Tensor,
        indices: Tensor,
        scales: range | None = None,
        label_smoothing: float = 0.0,
        path_keep: Tensor | None = None,
    ) -> Tensor:
        """Cross-entropy summed over the tokens of `scales`, divided by L (all tokens), averaged over the batch.

        indices: (B, L) int64, always whole. Logits exist for a few thousand tokens at a time and are made again in backward.
        """
        return (
            self.token_losses(labels, scale_inputs, indices, scales, label_smoothing, path_keep).sum(1).mean()
            / self.config.length
        )

    def token_losses(
        self,
        labels: Tensor,
        scale_inputs: Tensor,
        indices: Tensor,
        scales: range | None = None,
        label_smoothing: float = 0.0,
        path_keep: Tensor | None = None,
    ) -> Tensor:
        """Cross-entropy of every token of `scales`: (B, n) float32, in nats."""
        scales = self.check_scales(scales)
        if tuple(indices.shape) != (labels.shape[0], self.config.length):
            raise ValueError(
                f"indices must be ({labels.shape[0]}, {self.config.length}), got {tuple(indices.shape)}"
            )
        hidden, class_embedding = self.hidden_states(labels, scale_inputs, scales, path_keep)
        start = self.pyramid.offsets[scales.start]
        targets = indices[:, start : start + hidden.shape[1]]

        def chunk_losses(hidden: Tensor, class_embedding: Tensor, targets: Tensor) -> Tensor:
            logits = self.logits(hidden, class_embedding).flatten(0, 1)
            losses = F.cross_entropy(
                logits, targets.flatten(), reduction="none", label_smoothing=label_smoothing
            )
            return losses.view(targets.shape)

        step = max(1, _LOSS_CHUNK_TOKENS // hidden.shape[1])
        chunks = zip(hidden.split(step), class_embedding.split(step), targets.split(step))
        if not torch.is_grad_enabled():
            return torch.cat([chunk_losses(*chunk) for chunk in chunks])
        return torch.cat([checkpoint(chunk_losses, *chunk, use_reentrant=False) for chunk in chunks])

    def gradient_checkpointing_enable(self) -> None:
        """Keep only the input of each block for backward and run the block again there."""
        self.gradient_checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        self.gradient_checkpointing = False

    def _check_inputs(self, labels: Tensor, scale_inputs: Tensor) -> None:
        if labels.dim() != 1:
            raise ValueError(f"labels must be (B,), got {tuple(labels.shape)}")
        expected = (labels.shape[0], self.config.length - 1, self.config.z_channels)
        if tuple(scale_inputs.shape) != expected:
            raise ValueError(
                f"scale_inputs must be (B, L - 1, z) = {expected}, got {tuple(scale_inputs.shape)}"
            )
        # Only where looking is free: on a GPU it would wait for the device, and traced or fake labels have no values.
        visible = labels.device.type == "cpu" and type(labels) is Tensor and not torch.compiler.is_compiling()
        if (
            visible
            and labels.numel()
            and not 0 <= int(labels.min()) <= int(labels.max()) <= self.config.num_classes
        ):
            raise ValueError(
                f"labels must be between 0 and {self.config.num_classes} (unconditional), got {labels.tolist()}"
            )
