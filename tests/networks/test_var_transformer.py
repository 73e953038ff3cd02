"""The body of VAR and MVAR: residual branches, buffers, and steps that make up the whole."""

import pytest
import torch

from mvar_models import MVAR, MVARConfig

from tiny_models import tiny_mvar, tiny_var, tiny_vqvae

LENGTH = 21


@pytest.fixture
def batch(seed):
    labels, indices = torch.tensor([0, 3, 1]), torch.randint(24, (3, LENGTH))
    return labels, tiny_vqvae().quantizer.scale_inputs(indices).detach()


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
