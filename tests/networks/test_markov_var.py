"""Markov-VAR: what a scale depends on, steps against teacher forcing, initial values; its block,
position code and history pool against their formulas.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from mvar_models import MarkovVARConfig
from mvar_models.networks.markov_var import (
    GatedBlock,
    HistoryEntry,
    HistoryPool,
    RMSNorm,
    rotary_angles,
    rotate,
)
from mvar_models.networks.state import BlockContext

from tiny_models import NAMES, tiny_markov_var, tiny_sample

SIDES = (1, 2, 2, 3, 3, 4)
STARTS = (0, 1, 5, 9, 18, 27, 43)


def opened(model):
    """Initial gates are 1e-5, under which a wrong attention would hardly show."""
    torch.manual_seed(4)
    with torch.no_grad():
        model.history_pool.query.normal_(std=3)
        for block in model.blocks:
            block.modulation.weight.normal_(std=0.1)
            block.attention.proj.weight.normal_(std=0.3)
    return model


@pytest.fixture
def model():
    return opened(tiny_markov_var(sides=SIDES))


@pytest.fixture
def batch(seed):
    return torch.tensor([0, 3, 1]), torch.randn(3, STARTS[-1] - 1, 4)


@torch.no_grad()
def test_a_scale_depends_on_the_inputs_of_three_scales(model, batch):
    labels, inputs = batch
    before = model(labels, inputs)
    for changed in range(1, 6):
        other = inputs.clone()
        other[:, STARTS[changed] - 1 : STARTS[changed + 1] - 1] += 1
        after = model(labels, other)
        for scale in range(6):
            tokens = slice(STARTS[scale], STARTS[scale + 1])
            depends = scale - 2 <= changed <= scale
            differs = not torch.equal(before[:, tokens], after[:, tokens])
            assert differs == depends, f"scale {scale}, input of scale {changed}"


@torch.no_grad()
def test_the_history_has_the_length_that_the_configuration_says(batch):
    labels, inputs = batch
    model = tiny_markov_var(sides=SIDES, history_scales=1)
    other = inputs.clone()
    other[:, : STARTS[5] - 1] += 1
    last = slice(STARTS[5], None)
    assert torch.equal(model(labels, inputs)[:, last], model(labels, other)[:, last])


@torch.no_grad()
def test_steps_in_order_are_the_whole(model, batch):
    labels, inputs = batch
    whole, state = model(labels, inputs), model.new_state(labels)
    for scale in range(6):
        part = inputs[:, max(STARTS[scale] - 1, 0) : STARTS[scale + 1] - 1]
        hidden = model.step(state, part, scale)
        logits = model.logits(hidden, state.class_embedding)
        assert torch.allclose(logits, whole[:, STARTS[scale] : STARTS[scale + 1]], atol=2e-5)
    assert len(state.history) == 3


@torch.no_grad()
def test_a_fork_leaves_the_state_alone(model, batch):
    labels, inputs = batch
    state = model.new_state(labels)
    model.step(state, inputs[:, :0], 0)
    model.step(state.fork(), inputs[:, :4], 1)
    assert not state.history


@torch.no_grad()
def test_unconditional_rows_know_their_image_s_class(model, batch):
    """As released, and only through the history: the coarsest scale has none."""
    _, inputs = batch
    inputs = inputs.repeat(2, 1, 1)
    labels = torch.tensor([0, 2, 1])
    alone = model.new_state(torch.cat([labels, torch.full((3,), len(NAMES))]))
    shared = model.new_guided_state(labels)
    steps = [inputs[:, :0], inputs[:, :4]]
    first, second = (
        [model.step(state, part, s) for s, part in enumerate(steps)] for state in (alone, shared)
    )
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1][:3], second[1][:3])
    assert not torch.allclose(first[1][3:], second[1][3:], atol=1e-3)


def test_windows_may_be_combined_with_the_history(batch):
    labels, inputs = batch
    dense = opened(tiny_markov_var(sides=SIDES))
    local = opened(tiny_markov_var(sides=SIDES, kernel_size=3, dense_scales=5))
    assert local.pyramid.attended_pairs() < dense.pyramid.attended_pairs()
    with torch.no_grad():
        same, other = dense(labels, inputs), local(labels, inputs)
    assert torch.allclose(same[:, : STARTS[5]], other[:, : STARTS[5]], atol=1e-5)
    assert not torch.allclose(same[:, STARTS[5] :], other[:, STARTS[5] :], atol=1e-5)


def test_sampling_in_batches_draws_the_same_codes():
    model = tiny_markov_var()
    together = tiny_sample(model, [0, 1, 2], [5, 6, 7]).indices
    for row in range(3):
        assert torch.equal(tiny_sample(model, [row], [5 + row]).indices[0], together[row])


def test_initial_gates_are_almost_closed():
    torch.manual_seed(3)
    model = tiny_markov_var()
    for block in model.blocks:
        six = block.modulation.weight.view(6, 128, 128).std(dim=(1, 2))
        std = (1 / 3 / 128) ** 0.5
        assert torch.allclose(six[:2], torch.tensor(std * 1e-5), rtol=0.05)
        assert torch.allclose(six[2:], torch.tensor(std * 0.5), rtol=0.05)


@pytest.mark.parametrize(
    "change, match",
    [
        ({"kernel_size": 0}, "kernel_size .* got 0"),
        ({"history_scales": 0}, "history_scales .* got 0"),
        ({"shared_adaln": True}, "shared_adaln"),
        ({"width": 192, "num_heads": 3}, "width .* 128 .* got 192"),
    ],
    ids=lambda change: next(iter(change)) if isinstance(change, dict) else "",
)
def test_wrong_settings_are_refused(change, match):
    with pytest.raises(ValueError, match=match):
        MarkovVARConfig(**{"depth": 2, **change})


BLOCK_SHAPE = dict(depth=1, width=128, num_heads=2, mlp_ratio=1.0, num_classes=2, sides=(1, 4))


def rms(x, weight):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


@pytest.mark.parametrize("cosine", [True, False])
@torch.no_grad()
def test_a_gated_block_is_its_formula(cosine, seed):
    config = MarkovVARConfig(**BLOCK_SHAPE, cosine_attention=cosine)
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


def test_scales_share_the_finest_one_s_coordinates():
    row, column = rotary_angles((1, 2, 4), 8)
    assert row.shape == column.shape == (21, 4)
    # Two frequencies, 1 and 10000^(-1/2), each for two pairs.
    for token, (y, x) in {0: (0, 0), 4: (2, 2), 2: (0, 2), 5 + 7: (1, 3)}.items():
        assert torch.allclose(row[token], torch.tensor([y, y * 0.01, y, y * 0.01]))
        assert torch.allclose(column[token], torch.tensor([x, x * 0.01, x, x * 0.01]))


def test_a_pair_turns_by_two_angles():
    turned = rotate(
        torch.tensor([3.0, 5.0]).view(1, 1, 1, 2), torch.tensor([[0.3]]), torch.tensor([[1.1]])
    ).flatten()
    first = 3 * math.cos(0.3) - 5 * math.sin(0.3)
    second = 5 * math.cos(1.1) + 3 * math.sin(1.1)
    assert torch.allclose(turned, torch.tensor([first, second]))


def test_the_type_is_kept_and_angles_are_not_rounded_to_it():
    vectors = torch.randn(1, 16, 2, 8, generator=torch.Generator().manual_seed(0))
    angles = rotary_angles((4,), 8)
    half = rotate(vectors.bfloat16(), *angles)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, rotate(vectors.bfloat16().float(), *angles).bfloat16())


def test_other_head_dims_are_refused():
    with pytest.raises(ValueError, match=r"head_dim must be a multiple of 4.* got 6"):
        rotary_angles((2,), 6)


@pytest.fixture
def pool(seed):
    pool = HistoryPool(256)
    with torch.no_grad():
        for parameter in pool.parameters():
            parameter.normal_(std=0.1)
        pool.query.normal_(std=2)
    return pool


@torch.no_grad()
def test_it_is_attention(pool):
    tokens = torch.randn(3, 7, 256)
    key, value = (tokens @ pool.key_value.weight.T).chunk(2, dim=-1)
    heads = [part.unflatten(-1, (2, 128)).transpose(1, 2) for part in (key, value + pool.v_bias)]
    query = pool.query[None, :, None].expand(3, -1, -1, -1)
    pooled = F.scaled_dot_product_attention(query, *heads).transpose(1, 2).flatten(1)
    expected = F.linear(pooled, pool.proj.weight, pool.proj.bias)
    assert torch.allclose(pool(pool.entry(tokens)), expected, atol=1e-5)


@torch.no_grad()
def test_entries_are_joined_and_parted_by_token(pool):
    tokens = torch.randn(2, 9, 256)
    whole = pool.entry(tokens)
    joined = HistoryEntry.join([pool.entry(tokens[:, :4]), pool.entry(tokens[:, 4:])])
    assert torch.allclose(joined.scores, whole.scores, atol=1e-6)
    assert torch.allclose(pool(whole.part(slice(2, 6))), pool(pool.entry(tokens[:, 2:6])), atol=1e-6)


def test_other_widths_are_refused():
    with pytest.raises(ValueError, match=r"width must be a multiple of 128.* got 192"):
        HistoryPool(192)
