"""Discriminator, hinge, balance of gradients."""

import pytest
import torch

from mvar_models.training.vqvae_losses import Adversary, PatchDiscriminator, hinge_loss

from training_cases import ADVERSARIAL, new_vqvae_loop
from vqvae_cases import task


@pytest.mark.parametrize("resolution", [16, 32, 64, 256])
def test_discriminator_judges_patches(resolution):
    with torch.device("meta"):
        logits = PatchDiscriminator(resolution)(torch.empty(2, 3, resolution, resolution))
    assert logits.shape[:2] == (2, 1)
    assert 1 < logits.shape[-1] < resolution


def test_discriminator_learns_to_tell():
    """Smooth images from noise, in a few steps, whether it gets the batch whole or in parts."""
    adversary, parts = (Adversary(16, 1.0, 2e-3, "cpu", seed=0) for _ in range(2))
    torch.manual_seed(0)
    real, fake = torch.linspace(-1, 1, 16).expand(8, 3, 16, 16), torch.randn(8, 3, 16, 16)
    before = adversary.learn(real, fake, 1.0)["discriminator"]
    adversary.step(1.0)
    for half in (slice(0, 4), slice(4, 8)):
        parts.learn(real[half], fake[half], 0.5)
    parts.step(1.0)
    pairs = list(zip(adversary.discriminator.parameters(), parts.discriminator.parameters()))
    assert all(torch.allclose(mine, other, atol=1e-3) for mine, other in pairs)
    for _ in range(15):
        figures = adversary.learn(real, fake, 1.0)
        adversary.step(1.0)
    assert figures["judged_right"] == 1.0
    assert figures["discriminator"] < 0.5 * before


def test_adversarial_loss_pulls_as_hard_as_the_others():
    """At the decoder's last weight the two gradients are equally long, and the discriminator gets none of
    them.
    """
    subject = task(adversarial=1.0, adversarial_start=0)
    images = subject.batch(0)
    reconstructed = subject.compute(images)[0]
    weight, others = subject.model.decoder.conv_out.weight, (reconstructed - images).square().mean()
    loss, figures = subject.adversary.loss(reconstructed, others, weight)
    pulls = [torch.autograd.grad(term, weight, retain_graph=True)[0].norm() for term in (others, loss)]
    assert pulls[1] == pytest.approx(pulls[0].item(), rel=1e-2)
    assert figures["adversarial_balance"] > 0
    loss.backward()
    assert all(parameter.grad is None for parameter in subject.adversary.discriminator.parameters())


def test_hinge_loss():
    assert hinge_loss(torch.tensor([1.0, 3.0]), torch.tensor([-1.0, -2.0])) == 0
    assert hinge_loss(torch.tensor([0.0]), torch.tensor([0.5])) == pytest.approx(0.5 * (1 + 1.5))


@pytest.mark.parametrize("settings", [ADVERSARIAL, dict(steps=4)])
def test_micro_batches_are_the_whole_batch(tmp_path, settings):
    """Gradients, the discriminator's too, and what is logged: no loss is a mean over a micro-batch alone."""
    whole = new_vqvae_loop(tmp_path / "whole", **settings)
    parts = new_vqvae_loop(tmp_path / "parts", accumulate=3, **settings)
    networks = [
        [loop.task.model, *([loop.task.adversary.discriminator] if loop.task.adversary else [])]
        for loop in (whole, parts)
    ]
    close = 1e-4
    for step in range(2):
        (loss, figures), (others_loss, others) = (loop.gradients(step) for loop in (whole, parts))
        assert others_loss == pytest.approx(loss, rel=close)
        assert others == pytest.approx(figures, rel=close, abs=close)
        for one, other in zip(*networks):
            for (name, mine), (_, theirs) in zip(one.named_parameters(), other.named_parameters()):
                if mine.grad is None:  # a residual convolution that serves no scale
                    assert theirs.grad is None, name
                    continue
                difference = (mine.grad - theirs.grad).norm()
                assert difference <= close * mine.grad.norm() + 1e-7, (step, name)
        for loop in (whole, parts):
            loop.task.after_step(step)
