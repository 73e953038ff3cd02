"""The quantizer against its definition, and its methods against each other; figures are test_golden.py's."""

import pytest
import torch

from mvar_models import VQVAE, VQVAEConfig
from mvar_models.networks.quantizer import ResidualConvolution

from tiny_models import SIDES, tiny_vqvae


@pytest.fixture
def quantizer(seed):
    return tiny_vqvae().quantizer


@pytest.fixture
def features(seed):
    return torch.randn(3, 4, 4, 4)


@torch.no_grad()
def test_codes_are_the_nearest(quantizer, features):
    found = quantizer.nearest_codes(features)
    vectors = features.flatten(2).transpose(1, 2)
    distances = (vectors[:, :, None] - quantizer.codebook.weight).square().sum(-1)
    assert torch.equal(found, distances.argmin(-1))


@torch.no_grad()
def test_quantizing_is_residual(quantizer, features):
    """Each scale codes what the coarser ones left over; f_hat is what `embed` makes of the codes."""
    indices, f_hat = quantizer.quantize(features)
    rest, start = features, 0
    for scale, side in enumerate(SIDES):
        codes = indices[:, start : start + side * side]
        assert torch.equal(codes, quantizer.nearest_codes(quantizer.pool(rest, scale)))
        rest, start = rest - quantizer.contribution(codes, scale), start + side * side
    assert torch.allclose(f_hat, features - rest, atol=1e-5)
    assert torch.allclose(f_hat, quantizer.embed(indices), atol=1e-5)


@torch.no_grad()
def test_scale_inputs_are_f_hat_so_far(quantizer, features):
    indices, _ = quantizer.quantize(features)
    inputs, start = quantizer.scale_inputs(indices), 0
    assert inputs.shape == (3, 20, 4)
    for scale, f_hat in enumerate(quantizer.accumulate(indices)):
        if scale + 1 < len(SIDES):
            count = SIDES[scale + 1] ** 2
            expected = quantizer.next_input(f_hat, scale + 1)
            assert torch.equal(inputs[:, start : start + count], expected)
            start += count


def test_training_forward_agrees_and_passes_gradients_straight_through(quantizer, features):
    features.requires_grad_()
    f_hat, codebook_loss, commitment_loss, indices = quantizer(features)
    expected_indices, expected = quantizer.quantize(features.detach())
    assert torch.equal(indices, expected_indices)
    assert torch.allclose(f_hat, expected, atol=1e-5)
    weights = torch.randn_like(features)
    (gradient,) = torch.autograd.grad((f_hat * weights).sum(), features, retain_graph=True)
    assert torch.allclose(gradient, weights)
    assert torch.autograd.grad(codebook_loss, quantizer.codebook.weight, retain_graph=True)[0].any()
    assert torch.autograd.grad(codebook_loss, features, allow_unused=True, retain_graph=True)[0] is None
    assert torch.autograd.grad(commitment_loss, features)[0].any()


@torch.no_grad()
def test_residual_convolutions_mix_input_and_convolution(seed):
    features = torch.randn(1, 4, 5, 5)
    layer = ResidualConvolution(4, 0.25)
    convolved = torch.nn.functional.conv2d(features, layer.weight, layer.bias, padding=1)
    assert torch.allclose(layer(features), 0.75 * features + 0.25 * convolved, atol=1e-6)


def test_one_scale_has_no_inputs(seed):
    quantizer = VQVAE(
        VQVAEConfig(vocab_size=8, z_channels=4, channels=32, channel_multipliers=(1,), sides=(2,))
    ).quantizer
    assert quantizer.scale_inputs(torch.zeros(3, 4, dtype=torch.int64)).shape == (3, 0, 4)
