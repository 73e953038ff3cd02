"""VAR attends to its own and all coarser scales, and its cache gives what recomputation would."""

import pytest
import torch

from tiny_models import SIDES, tiny_var, tiny_vqvae

STARTS = (0, 1, 5, 21)


@pytest.fixture
def model(seed):
    """Initial gates are 1e-3, under which a wrong attention would hardly show."""
    model = tiny_var()
    with torch.no_grad():
        for block in model.blocks:
            block.modulation.weight.normal_(std=0.1)
            block.attention.proj.weight.normal_(std=0.3)
    return model


@pytest.fixture
def batch(seed):
    labels, indices = torch.tensor([0, 3, 1]), torch.randint(24, (3, STARTS[-1]))
    return labels, tiny_vqvae().quantizer.scale_inputs(indices).detach()


@pytest.mark.parametrize("scale", range(len(SIDES)))
@torch.no_grad()
def test_a_cached_step_equals_recomputing_the_coarser_scales(model, batch, scale):
    labels, inputs = batch
    state = model.new_state(labels)
    for index in range(scale + 1):
        own = inputs[:, max(STARTS[index] - 1, 0) : STARTS[index + 1] - 1]
        hidden = model.step(state, own, index)
    recomputed, _ = model.hidden_states(labels, inputs, range(scale + 1))
    assert torch.allclose(hidden, recomputed[:, STARTS[scale] :], atol=1e-4)


@torch.no_grad()
def test_a_step_leaves_keys_and_values_of_every_block(model, batch):
    """The last one leaves nothing, as nobody would read it."""
    labels, inputs = batch
    state = model.new_state(labels)
    assert state.cache.entries == {}
    for scale in range(len(SIDES)):
        model.step(state, inputs[:, max(STARTS[scale] - 1, 0) : STARTS[scale + 1] - 1], scale)
        assert sorted(state.cache.entries) == ([0, 1] if scale + 1 < len(SIDES) else [])
        for key, value in state.cache.entries.values():
            assert key.shape == value.shape == (3, STARTS[scale + 1], 2, 16)


@torch.no_grad()
def test_a_change_reaches_its_own_and_finer_scales_alone(model, batch):
    labels, inputs = batch
    changed = inputs.clone()
    changed[:, 0] += 1  # the input of the first token of the scale of side 2
    before, after = model(labels, inputs), model(labels, changed)
    assert torch.equal(before[:, :1], after[:, :1])
    differs = (before - after).abs().amax(dim=(0, 2)) > 1e-6
    assert differs[1:].all()


def test_the_coarser_scales_cannot_be_left_out(model, batch):
    labels, inputs = batch
    with pytest.raises(ValueError, match=r"scales.*range\(1, 2\)"):
        model(labels, inputs, scales=range(1, 2))
    first = model(labels, inputs, scales=range(2))
    assert torch.allclose(first, model(labels, inputs)[:, :5], atol=1e-4)
