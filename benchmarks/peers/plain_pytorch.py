"""VAR and MVAR in plain PyTorch, written as in the papers, on the parameters of our models.

Nothing is fused or recomputed, and float32 logits of the whole batch exist. Attention is any competitor of
the attention suite; the released programs use `scaled_dot_product_attention` with an additive (L, L) mask.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.core.activations import Loss
from benchmarks.core.cases import Case
from benchmarks.peers.baselines import Baseline, DenseMask, Eager
from mvar_kernels.module import MAX_LOG_SCALE
from mvar_models.networks.block import SelfAttention, TransformerBlock
from mvar_models.networks.transformer import ScaleTransformer
from mvar_models.networks.var import VAR

# Ways to compute a training step's loss, as the memory suite compares them.
WAYS = ("plain, scores kept", "plain", "ours", "ours, checkpointed")


class PlainModel:
    """Teacher-forcing logits and loss of `model`, from its parameters; no stochastic depth.

    Args:
        model: Whose parameters are used.
        dtype: Type of query, key and value.
        attention: A competitor of the attention suite; default dense SDPA with the mask.
    """

    def __init__(
        self, model: ScaleTransformer, dtype: torch.dtype, attention: Baseline | None = None
    ) -> None:
        self.model = model
        self.dtype = dtype
        device = next(model.parameters()).device
        self.attend = (attention or DenseMask()).prepare(case_of(model, 1, dtype), device)

    def loss(self, labels: Tensor, scale_inputs: Tensor, indices: Tensor) -> Tensor:
        """Return the mean cross-entropy; arguments as `ScaleTransformer.loss`."""
        logits = self.logits(labels, scale_inputs)
        return F.cross_entropy(logits.flatten(0, 1), indices.flatten())

    def logits(self, labels: Tensor, scale_inputs: Tensor) -> Tensor:
        """Return (B, L, V) float32."""
        model = self.model
        class_embedding = model.class_embedding(labels)
        hidden = _embed(model, class_embedding, scale_inputs)
        condition = F.silu(class_embedding)
        if model.shared_modulation is not None:
            condition = model.shared_modulation(condition)
        for block in model.blocks:
            hidden = self._block(block, hidden, condition)
        return _head(model, hidden, class_embedding)

    def _block(self, block: TransformerBlock, hidden: Tensor, condition: Tensor) -> Tensor:
        if block.shared_adaln:
            six = condition.unflatten(-1, (6, -1)) + block.modulation_offset
        else:
            six = block.modulation(condition).unflatten(-1, (6, -1))
        gate1, gate2, scale1, scale2, shift1, shift2 = six.unsqueeze(1).unbind(2)
        hidden = _gated_sum(hidden, self._attention(block.attention, _norm(hidden, scale1, shift1)), gate1)
        return _gated_sum(hidden, _feed_forward(block, _norm(hidden, scale2, shift2)), gate2)

    def _attention(self, attention: SelfAttention, normed: Tensor) -> Tensor:
        query, key, value = _qkv(attention, normed).to(self.dtype).unbind(2)
        factor = None if attention.log_scale is None else attention.log_scale.clamp_max(MAX_LOG_SCALE).exp()
        if factor is None:
            # Baselines scale scores by head_dim^-0.5; the model has a scale of its own.
            query = query * (attention.scale * query.shape[-1] ** 0.5)
        return attention.proj(self.attend(query, key, value, factor).flatten(2))


def loss_of(model: ScaleTransformer, way: str, dtype: torch.dtype) -> Loss:
    """Return the loss of `model` computed in one of `WAYS`; `dtype` is that of query, key and value."""
    if way not in WAYS:
        raise ValueError(f"way must be one of {WAYS}, got {way!r}")
    model.gradient_checkpointing = way == "ours, checkpointed"
    if way == "plain":
        return PlainModel(model, dtype).loss
    if way == "plain, scores kept":
        return PlainModel(model, dtype, Eager()).loss
    return model.loss


def case_of(model: ScaleTransformer, batch: int, dtype: torch.dtype, direction: str = "both") -> Case:
    """Return the attention inside a model's blocks as a case."""
    config = model.config
    windows = {
        name: getattr(config, name)
        for name in ("kernel_size", "dense_scales", "previous_scales")
        if name in config.field_names()
    }
    return Case(
        config.model_type,
        tuple(config.sides),
        batch=batch,
        heads=config.num_heads,
        head_dim=config.head_dim,
        dtype=dtype,
        cosine=config.cosine_attention,
        direction=direction,
        causal=isinstance(model, VAR),
        **windows,
    )


def _embed(model: ScaleTransformer, class_embedding: Tensor, scale_inputs: Tensor) -> Tensor:
    first = class_embedding.unsqueeze(1) + model.start_position
    tokens = torch.cat([first, model.token_embedding(scale_inputs)], dim=1)
    return tokens + model.positions + model.scale_embedding(model.scale_of_token)


def _norm(hidden: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.layer_norm(hidden, hidden.shape[-1:], eps=1e-6) * (1 + scale) + shift


def _qkv(attention: SelfAttention, normed: Tensor) -> Tensor:
    bias = torch.cat([attention.q_bias, torch.zeros_like(attention.q_bias), attention.v_bias])
    return F.linear(normed, attention.qkv.weight, bias).unflatten(-1, (3, attention.num_heads, -1))


def _gated_sum(hidden: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    return hidden + branch * gate


def _feed_forward(block: TransformerBlock, normed: Tensor) -> Tensor:
    return block.mlp.fc2(_gelu(block.mlp.fc1(normed)))


def _gelu(inner: Tensor) -> Tensor:
    return F.gelu(inner, approximate="tanh")


def _head(model: ScaleTransformer, hidden: Tensor, class_embedding: Tensor) -> Tensor:
    scale, shift = (
        model.head_modulation(F.silu(class_embedding)).unflatten(-1, (2, -1)).unsqueeze(1).unbind(2)
    )
    return model.head(_norm(hidden, scale, shift)).float()
