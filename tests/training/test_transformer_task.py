"""The loss of a step: which scales, labels and paths it takes, and how much each scale counts."""

import numpy as np
import pytest
import torch

from mvar_models.config import RELEASED_SIDES
from mvar_models.randomness import Purpose, batch_members, generator
from mvar_models.training.settings import TransformerSettings
from mvar_models.training.transformer_task import TransformerTask, scale_densities, token_weights

from tiny_models import tiny_mvar, tiny_var, tiny_vqvae
from training_cases import tiny_tokens


def task(model=None, **settings):
    config = TransformerSettings(data="digits", out="", batch_size=6, **settings)
    return TransformerTask(model or tiny_mvar(), tiny_vqvae(), tiny_tokens(), tiny_tokens(1), config)


def test_alternating_schedule_is_the_released_one():
    """Out of every 8 + local scales iterations 8 train the dense scales together and one trains each local
    scale.
    """
    chosen = [task(schedule="alternating").scales_of_step(step) for step in range(18)]
    assert chosen == ([range(0, 2)] * 8 + [range(2, 3)]) * 2
    assert task().scales_of_step(3) is None


def test_progressive_schedule_grows():
    """Half of the scales, rounded up, then one more after equal parts of 60 % of the run, for every model."""
    for model in (tiny_mvar(), tiny_var()):
        trained = task(model, schedule="progressive", steps=20)
        count = len(model.config.sides)
        assert count == 3
        assert [trained.scales_of_step(step) for step in range(20)] == [range(2)] * 12 + [None] * 8


def test_progressive_loss_is_a_part_of_the_whole():
    """Early steps leave the finest scale out of the sum, which is divided by all tokens as before."""
    model = tiny_var()
    early = task(model, schedule="progressive", steps=20, label_drop=0.0, drop_path=0.0)
    whole = task(model, steps=20, label_drop=0.0, drop_path=0.0)
    loss, figures = early.loss(0)
    assert figures == {"first_scale": 0, "last_scale": 1}
    labels, indices = early.train.batch(
        batch_members(early.settings.seed, 0, 6, len(early.train)),
        generator(early.settings.seed, Purpose.VARIANT, 0).integers(0, early.train.num_variants, 6),
    )
    with torch.no_grad():
        per_token = model.token_losses(labels, early.scale_inputs(indices), indices)
    assert torch.allclose(whole.loss(0)[0], per_token.mean(), rtol=1e-5)
    assert torch.allclose(loss, per_token[:, : model.pyramid.offsets[2]].sum(1).mean() / 21, rtol=1e-5)
    assert early.loss(19)[1] == {}


def test_scales_losses_add_up():
    """The losses of parts of the pyramid sum to the loss of all of it."""
    model, vqvae, tokens = tiny_mvar(), tiny_vqvae(), tiny_tokens()
    labels, indices = tokens.batch(np.arange(6))
    inputs = vqvae.quantizer.scale_inputs(indices).detach()
    whole = model.loss(labels, inputs, indices)
    parts = [model.loss(labels, inputs, indices, scales=scales) for scales in (range(0, 2), range(2, 3))]
    assert torch.allclose(whole, sum(parts), rtol=1e-5)
    with torch.no_grad():
        logits = model(labels, inputs)
    plain = torch.nn.functional.cross_entropy(logits.flatten(0, 1), indices.flatten())
    assert torch.allclose(whole, plain, rtol=1e-5)


def test_label_drop_and_drop_path():
    def first_loss(**settings):
        return task(**settings).loss(0)[0].item()

    plain = first_loss(label_drop=0.0, drop_path=0.0)
    assert first_loss(label_drop=0.0, drop_path=0.0) == plain
    assert first_loss(label_drop=0.9, drop_path=0.0) != plain
    assert first_loss(label_drop=0.0, drop_path=0.5) != plain
    keep = task(drop_path=0.5).path_keep(3)
    assert keep.shape == (2, 2, 6)
    assert set(keep[0].unique().tolist()) == {1.0}
    assert set(keep[1].unique().tolist()) <= {0.0, 2.0}


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
