"""The loss of a step: which scales, labels and paths it takes."""

import numpy as np
import torch

from mvar_models.randomness import Purpose, batch_members, generator
from mvar_models.training.settings import TransformerSettings
from mvar_models.training.transformer_task import TransformerTask

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
