"""The scale loop without any of the engine's short cuts: what sampling must give, bit for bit.

Each scale computes the modulation of every block again, both halves of a guided batch, and reads its random
numbers when it needs them; VAR's keys and values are concatenated. Blocks are computed from the parameters
alone. It is the baseline of the suite "engine", too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mvar_kernels.attention import neighborhood_attn
from mvar_kernels.module import MAX_LOG_SCALE
from mvar_models.networks.block import SelfAttention
from mvar_models.networks.quantizer import MultiScaleQuantizer
from mvar_models.networks.transformer import ScaleTransformer
from mvar_models.networks.var import VAR
from mvar_models.sampling.samplers import draw, filter_logits
from mvar_models.sampling.settings import SamplingSettings

Cache = dict[int, tuple[Tensor, Tensor]]


@torch.no_grad()
def plain_sample(
    model: ScaleTransformer,
    quantizer: MultiScaleQuantizer,
    labels: Tensor,
    generators: Sequence[torch.Generator],
    settings: SamplingSettings,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes (B, L), f_hat (B, z, h, h) and the guided logits (B, n, V) of the last scale."""
    config = model.config
    last, batch, side = len(config.sides) - 1, len(labels), config.sides[-1]
    guided = settings.guidance_scale not in (0.0, model.skips_guidance_at)
    rows = torch.cat([labels, torch.full_like(labels, config.num_classes)]) if guided else labels
    embedding = model.class_embedding(rows)
    cache: Cache | None = {} if isinstance(model, VAR) else None
    f_hat, parts = torch.zeros(batch, config.z_channels, side, side, device=labels.device), []
    for scale in range(last + 1):
        inputs = quantizer.next_input(f_hat, scale)
        inputs = torch.cat([inputs, inputs]) if guided else inputs
        hidden = _blocks(model, embedding, inputs, scale, cache)
        uniform = torch.stack(
            [torch.rand(hidden.shape[1], generator=each, dtype=torch.float64) for each in generators]
        )
        uniform = uniform.float().clamp_max(1 - 2**-24).to(labels.device)
        logits = _head(model, hidden[:batch], embedding[:batch])
        if guided:
            weight = settings.guidance_scale * (scale / max(last, 1))
            logits = (1 + weight) * logits - weight * _head(model, hidden[batch:], embedding[batch:])
        codes = draw(filter_logits(logits, settings.top_k, settings.top_p), uniform)
        parts.append(codes)
        f_hat = f_hat + quantizer.contribution(codes, scale).float()
    return torch.cat(parts, dim=1), f_hat, logits


def _blocks(
    model: ScaleTransformer, embedding: Tensor, inputs: Tensor, scale: int, cache: Cache | None
) -> Tensor:
    hidden = model.embed(embedding, inputs, range(scale, scale + 1))
    condition = F.silu(embedding)
    if model.shared_modulation is not None:
        condition = model.shared_modulation(condition)
    for index, block in enumerate(model.blocks):
        if model.shared_modulation is not None:
            six = condition.unflatten(-1, (6, -1)) + block.modulation_offset
        else:
            six = block.modulation(condition).unflatten(-1, (6, -1))
        gate1, gate2, scale1, scale2, shift1, shift2 = six.unsqueeze(1).unbind(2)
        attended = _attention(model, block.attention, _norm(hidden, scale1, shift1), scale, index, cache)
        hidden = hidden + attended * gate1
        inner = F.gelu(block.mlp.fc1(_norm(hidden, scale2, shift2)), approximate="tanh")
        hidden = hidden + block.mlp.fc2(inner) * gate2
    return hidden


def _attention(
    model: ScaleTransformer,
    attention: SelfAttention,
    normed: Tensor,
    scale: int,
    index: int,
    cache: Cache | None,
) -> Tensor:
    zero = torch.zeros_like(attention.q_bias)
    bias = torch.cat([attention.q_bias, zero, attention.v_bias])
    qkv = F.linear(normed, attention.qkv.weight, bias).unflatten(-1, (3, attention.num_heads, -1))
    query, key, value = qkv.unbind(2)
    if cache is not None:
        if index in cache:
            key, value = (torch.cat([old, new], dim=1) for old, new in zip(cache[index], (key, value)))
        cache[index] = key, value
    factor = None if attention.log_scale is None else attention.log_scale.clamp_max(MAX_LOG_SCALE).exp()
    out = neighborhood_attn(
        query, key, value, model.step_neighborhood(scale), scale=attention.scale, logit_scale=factor
    )
    return attention.proj(out.flatten(2))


def _norm(hidden: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.layer_norm(hidden, hidden.shape[-1:], eps=1e-6) * (1 + scale) + shift


def _head(model: ScaleTransformer, hidden: Tensor, embedding: Tensor) -> Tensor:
    scale, shift = model.head_modulation(F.silu(embedding)).unflatten(-1, (2, -1)).unsqueeze(1).unbind(2)
    return model.head(_norm(hidden.float(), scale, shift).to(model.head.weight.dtype)).float()
