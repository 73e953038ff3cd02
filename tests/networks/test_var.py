"""VAR attends to its own and all coarser scales, and its cache gives what recomputation would.

Also what its body, which MVAR shares, does: residual branches, buffers, and steps that make up the whole.
"""

import pytest
import torch

from mvar_models import MVAR, MVARConfig

from tiny_models import SIDES, tiny_mvar, tiny_var, tiny_vqvae

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


def test_dropped_paths_leave_the_input_of_the_blocks(batch):
    """With both branches of every block switched off, only embeddings and head are left."""
    model = tiny_mvar()
    labels, inputs = batch
    found = model(labels, inputs, path_keep=torch.zeros(2, 2, 3))
    embedding = model.class_embedding(labels)
    expected = model.logits(model.embed(embedding, inputs, range(3)), embedding)
    assert torch.allclose(found, expected, atol=1e-5)


def test_buffers_that_files_lack_are_functions_of_the_configuration():
    model = tiny_mvar()
    assert "scale_of_token" not in model.state_dict()
    assert model.scale_of_token.tolist() == [0] + [1] * 4 + [2] * 16
    with torch.device("meta"):
        blank = MVAR(MVARConfig(depth=1, width=32, num_heads=2, sides=(1, 2), dense_scales=2))
    blank.to_empty(device="cpu")
    blank.reset_buffers()
    assert blank.scale_of_token.tolist() == [0] + [1] * 4


@pytest.mark.parametrize("make", [tiny_var, tiny_mvar])
@torch.no_grad()
def test_steps_in_order_are_the_whole(batch, make):
    model = make()
    labels, inputs = batch
    state, parts = model.new_state(labels), []
    for scale in range(3):
        tokens = model.pyramid.scale_slice(scale)
        own = inputs[:, max(tokens.start - 1, 0) : tokens.stop - 1]
        parts.append(model.logits(model.step(state, own, scale), state.class_embedding))
    assert torch.allclose(torch.cat(parts, dim=1), model(labels, inputs), atol=1e-4)
