"""A block against its formula in plain PyTorch, also with shared modulation, cache and dropped paths."""

import math

import pytest
import torch
import torch.nn.functional as F

from mvar_kernels import Pyramid
from mvar_kernels.pyramid import Neighborhood
from mvar_models.config import VARConfig
from mvar_models.networks.block import TransformerBlock
from mvar_models.networks.state import KVCache

SIDES, WIDTH, HEADS = (1, 2), 16, 2


def make(shared, cosine):
    config = VARConfig(
        depth=1, width=WIDTH, num_heads=HEADS, sides=SIDES, shared_adaln=shared, cosine_attention=cosine
    )
    block = TransformerBlock(config, 0)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.3)
    return block


def norm(hidden, scale, shift):
    return F.layer_norm(hidden, (WIDTH,), eps=1e-6) * (1 + scale) + shift


def plain(block, hidden, six, keep=(1, 1)):
    """Dense attention over all tokens, heads by `chunk`."""
    gate1, gate2, scale1, scale2, shift1, shift2 = six.unsqueeze(2).unbind(1)
    attention = block.attention
    query, key, value = (
        part.unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for part in (attention.qkv(norm(hidden, scale1, shift1)) + attention.bias()).chunk(3, dim=-1)
    )
    scale = attention.scale
    if attention.log_scale is not None:
        query, key = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
        scale = attention.log_scale.clamp_max(math.log(100)).exp()[:, None, None]
    weights = (query @ key.transpose(-1, -2) * scale).softmax(-1)
    hidden = hidden + attention.proj((weights @ value).transpose(1, 2).flatten(2)) * gate1 * keep[0]
    inner = F.gelu(block.mlp.fc1(norm(hidden, scale2, shift2)), approximate="tanh")
    return hidden + block.mlp.fc2(inner) * gate2 * keep[1]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_a_block_is_its_formula(seed, shared, cosine, grad):
    block, hidden = make(shared, cosine), torch.randn(2, 4, WIDTH)
    condition = torch.randn(2, 6 * WIDTH if shared else WIDTH)
    if shared:
        six = condition.unflatten(-1, (6, -1)) + block.modulation_offset
    else:
        six = block.modulation(condition).unflatten(-1, (6, -1))
    with torch.set_grad_enabled(grad):
        found = block(hidden, condition, Pyramid((2,)).neighborhood(), "reference")
    assert torch.allclose(found, plain(block, hidden, six), atol=1e-4)


def test_paths_are_dropped_per_image_and_branch(seed):
    block, hidden, condition = make(False, True), torch.randn(2, 4, WIDTH), torch.randn(2, WIDTH)
    neighborhood = Pyramid((2,)).neighborhood()
    keep = torch.tensor([[0.0, 2.0], [0.0, 1.0]])
    found = block(hidden, condition, neighborhood, "reference", keep)
    six = block.modulation(condition).unflatten(-1, (6, -1))
    assert torch.allclose(found[0], hidden[0], atol=1e-6)
    assert torch.allclose(found[1:], plain(block, hidden[1:], six[1:], (2, 1)), atol=1e-4)


def test_a_cache_extends_the_keys(seed):
    """Queries of the second call attend to the tokens of both."""
    block, hidden, condition = make(False, True), torch.randn(2, 5, WIDTH), torch.randn(2, WIDTH)
    pyramid, cache = Pyramid(SIDES), KVCache()
    whole = block(hidden, condition, pyramid.causal_neighborhood(), "reference")
    block(hidden[:, :1], condition, Pyramid((1,)).neighborhood(), "reference", cache=cache)
    window = Neighborhood.of_grids((2, 2), (1, 5), (1, 5))
    second = block(hidden[:, 1:], condition, window, "reference", cache=cache)
    assert torch.allclose(second, whole[:, 1:], atol=1e-4)


def test_factors_of_cosine_attention_are_clamped_at_100(seed):
    block, hidden, condition = make(False, True), torch.randn(1, 4, WIDTH), torch.randn(1, WIDTH)
    neighborhood = Pyramid((2,)).neighborhood()
    results = []
    for value in (math.log(100), 10.0):
        with torch.no_grad():
            block.attention.log_scale.fill_(value)
        results.append(block(hidden, condition, neighborhood, "reference"))
    assert torch.equal(*results)
