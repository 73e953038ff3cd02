"""Weights of scales in the loss."""

import numpy as np
import pytest
import torch

from mvar_models.config import RELEASED_SIDES
from mvar_models.training.scale_weights import scale_densities, token_weights
from mvar_models.training.settings import TransformerSettings
from mvar_models.training.transformer_task import TransformerTask

from tiny_models import tiny_mvar, tiny_vqvae
from training_cases import tiny_tokens


def test_densities_of_the_released_sides():
    """Ten numbers computed apart from this code."""
    expected = [0.0247, 0.0642, 0.1150, 0.1379, 0.1402, 0.1329, 0.1208, 0.1054, 0.0882, 0.0709]
    assert scale_densities(RELEASED_SIDES[256]) == pytest.approx(expected, abs=5e-5)
    assert scale_densities((4,)) == [1.0]


def test_token_weights_share_a_scale_among_its_tokens():
    weights = token_weights("density", (1, 2, 4))
    assert [part.sum().item() for part in weights.split((1, 4, 16))] == pytest.approx(
        scale_densities((1, 2, 4))
    )
    assert token_weights("tokens", (1, 2, 4)) is None


@pytest.mark.parametrize("scales", [None, range(1, 3)])
def test_loss_weighs_tokens(scales):
    """Equal weights are the mean; other weights are the weighted sum, also of some scales alone."""
    model, vqvae, tokens = tiny_mvar(), tiny_vqvae(), tiny_tokens()
    labels, indices = tokens.batch(np.arange(6))
    inputs, length = vqvae.quantizer.scale_inputs(indices).detach(), model.config.length
    if scales is not None:
        scales = range(model.config.dense_scales, len(model.config.sides))
    even = model.loss(labels, inputs, indices, scales=scales, token_weights=torch.full((length,), 1 / length))
    assert torch.allclose(even, model.loss(labels, inputs, indices, scales=scales), rtol=1e-5)
    weights = token_weights("density", model.config.sides)
    losses = model.token_losses(labels, inputs, indices, scales=scales)
    expected = (losses * weights[length - losses.shape[1] :]).sum(1).mean()
    found = model.loss(labels, inputs, indices, scales=scales, token_weights=weights)
    assert torch.allclose(found, expected, rtol=1e-5)


def test_training_weighs_and_validation_does_not():
    def made(**settings):
        config = TransformerSettings(data="digits", out="", batch_size=6, **settings)
        return TransformerTask(tiny_mvar(), tiny_vqvae(), tiny_tokens(), tiny_tokens(1), config)

    plain, weighted = made(), made(scale_weights="density")
    assert plain.loss(0)[0].item() != weighted.loss(0)[0].item()
    assert plain.validate() == weighted.validate()
