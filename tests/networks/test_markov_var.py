"""Markov-VAR: what a scale depends on, steps against teacher forcing, and its initial values."""

import pytest
import torch

from mvar_models import MarkovVARConfig

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
