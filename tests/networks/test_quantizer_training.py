"""Quantization in training: it agrees with inference, and each loss moves its own side."""

import pytest
import torch
import torch.nn.functional as F

from mvar_models import VQVAEConfig
from mvar_models.networks.quantizer import MultiScaleQuantizer

SIDES = (1, 2, 3, 5)


def make_quantizer(sides=SIDES):
    config = VQVAEConfig(vocab_size=11, z_channels=3, channels=32, channel_multipliers=(1, 1), sides=sides)
    quantizer = MultiScaleQuantizer(config)
    torch.nn.init.normal_(quantizer.codebook.weight)
    return quantizer


@pytest.fixture
def features(seed):
    return torch.randn(2, 3, SIDES[-1], SIDES[-1], requires_grad=True)


def test_training_gives_the_codes_and_latent_of_inference(features):
    quantizer = make_quantizer()
    straight_through, _, _, indices = quantizer(features)
    expected_indices, f_hat = quantizer.quantize(features.detach())
    assert torch.equal(indices, expected_indices)
    assert indices.shape == (2, sum(side * side for side in SIDES))
    torch.testing.assert_close(straight_through, f_hat, rtol=0, atol=1e-6)
    torch.testing.assert_close(quantizer.embed(indices), f_hat, rtol=0, atol=1e-6)


def test_residual_codes_are_nearest_to_what_is_left(features):
    """Written out with a loop over codes and the definition of the distance."""
    quantizer = make_quantizer()
    indices, _ = quantizer.quantize(features.detach())
    rest, offset = features.detach(), 0
    for scale, side in enumerate(SIDES):
        pooled = F.adaptive_avg_pool2d(rest, side).flatten(2).transpose(1, 2)
        distance = (pooled[:, :, None] - quantizer.codebook.weight).square().sum(dim=-1)
        chosen = indices[:, offset : offset + side * side]
        gap = distance.gather(2, chosen[..., None])[..., 0] - distance.min(dim=2).values
        assert gap.max() < 1e-5, f"scale {scale}"
        rest = rest - quantizer.contribution(chosen, scale)
        offset += side * side


def test_losses_are_averaged_over_scales(features):
    quantizer = make_quantizer()
    _, codebook_loss, commitment_loss, indices = quantizer(features)
    expected = torch.stack([F.mse_loss(f_hat, features) for f_hat in quantizer.accumulate(indices)]).mean()
    torch.testing.assert_close(codebook_loss, expected)
    torch.testing.assert_close(commitment_loss, expected)


def test_each_loss_moves_its_own_side(features):
    quantizer = make_quantizer()
    straight_through, codebook_loss, commitment_loss, _ = quantizer(features)
    of_latent, of_codes = (
        torch.autograd.grad(loss, [features, quantizer.codebook.weight], retain_graph=True, allow_unused=True)
        for loss in (commitment_loss, codebook_loss)
    )
    assert of_latent[0] is not None
    assert of_latent[1] is None, "commitment leaves the codes where they are"
    assert of_codes[0] is None, "the codebook's loss leaves the latent where it is"
    assert of_codes[1].abs().sum() > 0
    (gradient,) = torch.autograd.grad(straight_through, features, torch.full_like(features, 3.0))
    assert torch.equal(gradient, torch.full_like(features, 3.0)), "straight through"


def test_inputs_of_one_scale_are_empty():
    quantizer = make_quantizer(sides=(4,))
    inputs = quantizer.scale_inputs(torch.zeros((2, 16), dtype=torch.int64))
    assert inputs.shape == (2, 0, 3)
    assert inputs.dtype == quantizer.codebook.weight.dtype


def test_inputs_are_the_latent_so_far_at_the_next_side(features):
    quantizer = make_quantizer()
    indices, f_hat = quantizer.quantize(features.detach())
    inputs = quantizer.scale_inputs(indices)
    assert inputs.shape == (2, indices.shape[1] - 1, 3)
    *_, before_last, last = quantizer.accumulate(indices)
    torch.testing.assert_close(last, f_hat, rtol=0, atol=1e-6)
    side = SIDES[-1]
    assert torch.equal(inputs[:, -side * side :], before_last.flatten(2).transpose(1, 2))


def test_usage_has_a_row_per_scale_as_in_released_files():
    usage = make_quantizer().state_dict()["code_usage"]
    assert usage.shape == (len(SIDES), 11)
    assert not usage.any()
