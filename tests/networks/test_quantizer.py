"""The quantizer against its definition, and its methods against each other; figures are test_golden.py's."""

import pytest
import torch
import torch.nn.functional as F

from mvar_models import VQVAE, VQVAEConfig
from mvar_models.networks.quantizer import MultiScaleQuantizer, ResidualConvolution

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


TRAINED_SIDES = (1, 2, 3, 5)


def make_quantizer(sides=TRAINED_SIDES):
    config = VQVAEConfig(vocab_size=11, z_channels=3, channels=32, channel_multipliers=(1, 1), sides=sides)
    quantizer = MultiScaleQuantizer(config)
    torch.nn.init.normal_(quantizer.codebook.weight)
    return quantizer


@pytest.fixture
def latents(seed):
    return torch.randn(2, 3, TRAINED_SIDES[-1], TRAINED_SIDES[-1], requires_grad=True)


def test_training_gives_the_codes_and_latent_of_inference(latents):
    quantizer = make_quantizer()
    straight_through, _, _, indices = quantizer(latents)
    expected_indices, f_hat = quantizer.quantize(latents.detach())
    assert torch.equal(indices, expected_indices)
    assert indices.shape == (2, sum(side * side for side in TRAINED_SIDES))
    torch.testing.assert_close(straight_through, f_hat, rtol=0, atol=1e-6)
    torch.testing.assert_close(quantizer.embed(indices), f_hat, rtol=0, atol=1e-6)


def test_residual_codes_are_nearest_to_what_is_left(latents):
    """Written out with a loop over codes and the definition of the distance."""
    quantizer = make_quantizer()
    indices, _ = quantizer.quantize(latents.detach())
    rest, offset = latents.detach(), 0
    for scale, side in enumerate(TRAINED_SIDES):
        pooled = F.adaptive_avg_pool2d(rest, side).flatten(2).transpose(1, 2)
        distance = (pooled[:, :, None] - quantizer.codebook.weight).square().sum(dim=-1)
        chosen = indices[:, offset : offset + side * side]
        gap = distance.gather(2, chosen[..., None])[..., 0] - distance.min(dim=2).values
        assert gap.max() < 1e-5, f"scale {scale}"
        rest = rest - quantizer.contribution(chosen, scale)
        offset += side * side


def test_losses_are_averaged_over_scales(latents):
    quantizer = make_quantizer()
    _, codebook_loss, commitment_loss, indices = quantizer(latents)
    expected = torch.stack([F.mse_loss(f_hat, latents) for f_hat in quantizer.accumulate(indices)]).mean()
    torch.testing.assert_close(codebook_loss, expected)
    torch.testing.assert_close(commitment_loss, expected)


def test_each_loss_moves_its_own_side(latents):
    quantizer = make_quantizer()
    straight_through, codebook_loss, commitment_loss, _ = quantizer(latents)
    of_latent, of_codes = (
        torch.autograd.grad(loss, [latents, quantizer.codebook.weight], retain_graph=True, allow_unused=True)
        for loss in (commitment_loss, codebook_loss)
    )
    assert of_latent[0] is not None
    assert of_latent[1] is None, "commitment leaves the codes where they are"
    assert of_codes[0] is None, "the codebook's loss leaves the latent where it is"
    assert of_codes[1].abs().sum() > 0
    (gradient,) = torch.autograd.grad(straight_through, latents, torch.full_like(latents, 3.0))
    assert torch.equal(gradient, torch.full_like(latents, 3.0)), "straight through"


def test_inputs_of_one_scale_are_empty():
    quantizer = make_quantizer(sides=(4,))
    inputs = quantizer.scale_inputs(torch.zeros((2, 16), dtype=torch.int64))
    assert inputs.shape == (2, 0, 3)
    assert inputs.dtype == quantizer.codebook.weight.dtype


def test_inputs_are_the_latent_so_far_at_the_next_side(latents):
    quantizer = make_quantizer()
    indices, f_hat = quantizer.quantize(latents.detach())
    inputs = quantizer.scale_inputs(indices)
    assert inputs.shape == (2, indices.shape[1] - 1, 3)
    *_, before_last, last = quantizer.accumulate(indices)
    torch.testing.assert_close(last, f_hat, rtol=0, atol=1e-6)
    side = TRAINED_SIDES[-1]
    assert torch.equal(inputs[:, -side * side :], before_last.flatten(2).transpose(1, 2))


def test_usage_has_a_row_per_scale_as_in_released_files():
    usage = make_quantizer().state_dict()["code_usage"]
    assert usage.shape == (len(TRAINED_SIDES), 11)
    assert not usage.any()
