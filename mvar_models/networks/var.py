"""VAR (arXiv 2404.02905), and the body that MVAR shares: learned positions, blocks with LayerNorm and AdaLN.

Shapes: B images, n tokens, C width, z channels of a code.
"""

from __future__ import annotations

import abc
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvar_kernels.pyramid import Neighborhood
from mvar_models.config import TransformerConfig, VARConfig
from mvar_models.networks.block import NORM_EPS, TransformerBlock
from mvar_models.networks.layers import input_dtype
from mvar_models.networks.state import KVCache, ScaleState
from mvar_models.networks.transformer import ScaleTransformer


class VARTransformer(ScaleTransformer):
    """VAR's network, without saying who attends to whom.

    A subclass says it: `neighborhood` for training, `step_neighborhood` for one scale at a time. If its state
    is not a KV cache, it overrides `step`.
    """

    scale_of_token: Tensor

    def add_body(self, config: TransformerConfig) -> None:
        width = config.width
        self.start_position = nn.Parameter(torch.empty(1, width))
        self.positions = nn.Parameter(torch.empty(config.length, width))
        self.scale_embedding = nn.Embedding(len(config.sides), width)
        self.shared_modulation = nn.Linear(width, 6 * width) if config.shared_adaln else None
        self.blocks = nn.ModuleList(TransformerBlock(config, index) for index in range(config.depth))

    def reset_buffers(self) -> None:
        # The scale of each token is a function of the configuration, so files do not store it.
        scale_of_token = self.config.scale_of_token().to(self.positions.device)
        self.register_buffer("scale_of_token", scale_of_token, persistent=False)

    @torch.no_grad()
    def init_weights(self) -> None:
        config = self.config
        std = self._init_linears()
        nn.init.trunc_normal_(self.start_position, std=std)
        nn.init.trunc_normal_(self.positions, std=std)
        for block in self.blocks:
            assert isinstance(block, TransformerBlock)
            block.attention.proj.weight /= math.sqrt(2 * config.depth)
            block.mlp.fc2.weight /= math.sqrt(2 * config.depth)
            if config.shared_adaln:
                six = nn.init.normal_(block.modulation_offset, std=1 / math.sqrt(config.width))
            else:
                six = block.modulation.weight.view(6, config.width, config.width)
            six[:2] *= 1e-3
            six[2:] *= 0.5

    @abc.abstractmethod
    def step_neighborhood(self, scale: int) -> Neighborhood:
        """Who attends to whom while sampling computes `scale`: its tokens to the cache, or to themselves."""

    def step(self, state: ScaleState, inputs: Tensor, scale: int) -> Tensor:
        hidden = self.embed(state.class_embedding, inputs, range(scale, scale + 1))
        neighborhood = self.step_neighborhood(scale)
        return self.run_blocks(hidden, state.class_embedding, neighborhood, state=state)

    def hidden_states(
        self, labels: Tensor, scale_inputs: Tensor, scales: range, path_keep: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        self._check_inputs(labels, scale_inputs)
        class_embedding = self.class_embedding(labels)
        tokens = self.tokens_of(scales)
        inputs = scale_inputs[:, max(tokens.start - 1, 0) : tokens.stop - 1]
        hidden = self.embed(class_embedding, inputs, scales)
        return self.run_blocks(hidden, class_embedding, self.neighborhood(scales), path_keep), class_embedding

    def embed(self, class_embedding: Tensor, inputs: Tensor, scales: range) -> Tensor:
        """Embed consecutive scales.

        Args:
            class_embedding: (B, C); with the start position it is the input of the coarsest scale.
            inputs: (B, n', z), inputs of those of the scales that are not the coarsest.
            scales: The scales.

        Returns:
            (B, n, C), the input of the first block.
        """
        parts = []
        if scales.start == 0:
            parts.append(class_embedding.unsqueeze(1) + self.start_position)
        if inputs.shape[1]:
            parts.append(self.token_embedding(inputs.to(input_dtype(self.token_embedding))))
        tokens = self.tokens_of(scales)
        where = self.positions[tokens] + self.scale_embedding(self.scale_of_token[tokens])
        return (torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]) + where

    def normed_for_head(self, hidden: Tensor) -> Tensor:
        return F.layer_norm(hidden, hidden.shape[-1:], eps=NORM_EPS)


class VAR(VARTransformer):
    """Attends block-causally over scales; sampling keeps the keys and values of the scales already drawn."""

    config_class = VARConfig
    skips_guidance_at = 0.0

    def check_scales(self, scales: range | None) -> range:
        scales = super().check_scales(scales)
        if scales.start != 0:
            raise ValueError(f"VAR needs all coarser scales, so scales must start at 0, got {scales!r}")
        return scales

    def neighborhood(self, scales: range) -> Neighborhood:
        return self.pyramid.select(scales).causal_neighborhood()

    def new_state(self, labels: Tensor) -> ScaleState:
        last = self.config.sides[-1] ** 2
        return ScaleState(self.class_embedding(labels), KVCache(length=self.config.length, last=last))

    def step_neighborhood(self, scale: int) -> Neighborhood:
        # Every token of the scale attends to the whole cache, which is laid out as one row of tokens.
        side, length = self.config.sides[scale], self.pyramid.scale_slice(scale).stop
        return Neighborhood.of_grids((side, side), (1, length), (1, length))
