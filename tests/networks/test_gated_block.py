"""A block of Markov-VAR against its formula, written out with dense attention."""

import pytest
import torch
import torch.nn.functional as F

from mvar_models.config import MarkovVARConfig
from mvar_models.networks.markov_block import GatedBlock, RMSNorm, rotary_angles, rotate
from mvar_models.networks.state import BlockContext

SHAPE = dict(depth=1, width=128, num_heads=2, mlp_ratio=1.0, num_classes=2, sides=(1, 4))


def rms(x, weight):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


@pytest.mark.parametrize("cosine", [True, False])
@torch.no_grad()
def test_the_formula(cosine, seed):
    config = MarkovVARConfig(**SHAPE, cosine_attention=cosine)
    block = GatedBlock(config)
    for parameter in block.parameters():
        parameter.normal_(std=0.3)
    hidden, condition = torch.randn(3, 16, 128), torch.randn(3, 128)
    angles = [part[1:] for part in rotary_angles(config.sides, 64)]
    keep = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.5, 1.0]])
    neighborhood = config.pyramid().select(range(1, 2)).neighborhood()
    actual = block(hidden, condition, keep, BlockContext(neighborhood, "reference", angles=angles))

    six = F.linear(condition, block.modulation.weight, block.modulation.bias).view(3, 1, 6, 128).unbind(2)
    gate1, gate2, scale1, scale2, shift1, shift2 = six
    attention, mlp = block.attention, block.mlp
    x = rms(hidden, block.norm.weight) * (1 + scale1) + shift1
    bias = torch.cat([attention.q_bias, torch.zeros(128), attention.v_bias])
    query, key, value = (x @ attention.qkv.weight.T + bias).view(3, 16, 3, 2, 64).unbind(2)
    if cosine:
        query = F.normalize(query, dim=-1) * attention.log_scale.clamp_max(4.6051702).exp()[:, None]
        key = F.normalize(key, dim=-1)
    query, key = (rotate(part, *angles) for part in (query, key))
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) * (1.0 if cosine else 0.25 / 8)
    attended = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value).flatten(2)
    out = attended @ attention.proj.weight.T + attention.proj.bias
    expected = hidden + out * gate1 * keep[0, :, None, None]
    x = rms(expected, block.norm.weight) * (1 + scale2) + shift2
    inner = F.silu(x @ mlp.gate.weight.T) * (x @ mlp.up.weight.T)
    expected = expected + (inner @ mlp.down.weight.T) * gate2 * keep[1, :, None, None]
    assert (actual - expected).abs().max() <= 2e-5 * expected.abs().max()


@torch.no_grad()
def test_the_norm_runs_in_float32(seed):
    norm = RMSNorm(8)
    norm.weight.normal_()
    hidden = torch.randn(5, 8).mul(300).half()  # squares overflow float16
    expected = rms(hidden.float(), 1.0).half() * norm.half().weight
    assert torch.equal(norm(hidden), expected)
